"""Mathematics as pictures: LaTeX becomes SVG while the site is built, so that readers need no script and no font."""

import html
import re
from functools import cache

import latex2mathml.converter
import ziamath

# What pymdownx.arithmatex leaves of $...$, here with the mark that must stay beside it, and of $$...$$.
INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>([.,;:)]?)', flags=re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', flags=re.DOTALL)
BOX = re.compile(r'^<svg (.*?) ?width="[^"]*" height="[^"]*" viewBox="\S+ (\S+) (\S+) (\S+)"')
SIZE = 16.0  # of the text around it, in the units of the SVG

ziamath.config.svg2 = False  # no <symbol>: those of two formulas would have the same name
ziamath.config.precision = 2


def draw_all(page: str) -> str:
    """The HTML of a page with all its mathematics drawn."""
    page = DISPLAY.sub(lambda match: f'<div class="equation">{draw(_latex(match[1]), inline=False)}</div>', page)
    return INLINE.sub(
        lambda match: f'<span class="formula">{draw(_latex(match[1]), inline=True)}{match[2]}</span>', page
    )


@cache
def draw(latex: str, inline: bool) -> str:
    """An <svg> in the colour and size of the text around it, its line on the line of the text."""
    svg = ziamath.Latex(latex, size=SIZE, inline=inline).svg().replace('fill="black"', 'fill="currentColor"')
    if "\\" in latex2mathml.converter.convert(latex):
        raise ValueError(f"not all of this is understood: {latex}")
    box = BOX.match(svg)
    if box is None:
        raise ValueError(f"ziamath writes its <svg> in another way: {svg[:200]}")
    top, width, height = (float(number) / SIZE for number in box.groups()[1:])
    if inline:
        style = f"width:{width:.2f}em;height:{height:.2f}em;vertical-align:{-(top + height):.2f}em"
    else:  # a narrow page makes it smaller, to three quarters
        style = f"width:{width:.2f}em;min-width:{0.75 * width:.2f}em;height:auto"
    label = html.escape(latex)
    return svg.replace("<svg ", f'<svg class="math" role="img" aria-label="{label}" style="{style}" ', 1)


def _latex(escaped: str) -> str:
    return " ".join(html.unescape(escaped).split())

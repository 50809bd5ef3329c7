"""Text of pages and docstrings as the site shows it. Only text: MkDocs is not needed to test it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

PACKAGE = "triton_rankloss"
# Of docstrings. The directive `.. math::`, then all lines that are empty or deeper.
MATH_BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*| *(?=\n\1 +)))*)", flags=re.MULTILINE)
MATH = re.compile(r":math:`([^`]+)`")
FUNCTION = re.compile(rf":func:`(?:{PACKAGE}\.)?(\w+)`")
METHOD = re.compile(r":meth:`(\w+)`")
# Of pages.
FENCE = re.compile(r"(^ *```.*?^ *```$)", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:)([^)#\s]+)(#[^)]*)?\)")
PICTURE = re.compile(r'<picture>\s*<source [^>]*srcset="([^"]+)">\s*<img alt="([^"]+)" src="([^"]+)">\s*</picture>')
NOT_RUN = re.compile(r"^( *)<!-- not run: (.*?) -->$", flags=re.MULTILINE)


def from_docstring(docstring: str) -> str:
    """reST roles and `.. math::`, which read well in a terminal, in the forms of Markdown."""
    text = MATH_BLOCK.sub(_equations, docstring)
    text = MATH.sub(lambda match: f"${match[1].strip()}$", text)
    text = FUNCTION.sub(rf"[`\1`][{PACKAGE}.\1]", text)
    return METHOD.sub(r"`\1`", text)


def _equations(match: re.Match[str]) -> str:
    """Each paragraph of the directive is an equation."""
    paragraphs = re.split(r"\n\s*\n", match[2].strip())
    equations = [" ".join(line.strip() for line in paragraph.splitlines()) for paragraph in paragraphs]
    return "\n\n".join(f"{match[1]}$$\n{match[1]}{equation}\n{match[1]}$$" for equation in equations)


def from_page(markdown: str, source: Path, places: Mapping[Path, str], root: Path) -> str:
    """A page for the site, where the files `places` lie; code blocks stay as they are."""
    parts = FENCE.split(markdown)
    parts[::2] = [_rewrite(text, source, places, root) for text in parts[::2]]
    return "".join(parts)


def _rewrite(text: str, source: Path, places: Mapping[Path, str], root: Path) -> str:
    # Not the system's colours but those that the reader chose.
    text = PICTURE.sub(r"![\2](\3#only-light)\n![\2](\1#only-dark)", text)
    text = NOT_RUN.sub(r'\1<p class="not-run">Not run by the tests: \2.</p>\n', text)
    return LINK.sub(lambda match: _link(match, source, places, root), text)


def _link(match: re.Match[str], source: Path, places: Mapping[Path, str], root: Path) -> str:
    """A link to what the site holds leads there, one to any other file becomes its name."""
    image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
    path = (source.parent / target).resolve()
    if not path.exists():
        return match[0]  # MkDocs will warn
    if path in places:
        return f"{image}[{text}]({os.path.relpath(places[path], os.path.dirname(places[source]) or '.')}{anchor})"
    bare, name = text.replace("`", ""), path.relative_to(root).as_posix()
    return f"`{bare}`" if bare.rstrip("/").endswith(path.name) else f"{text} (`{name}`)"

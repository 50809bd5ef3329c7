"""Docstrings as the site shows them: reST roles and `.. math::`, which read well in a terminal, become Markdown."""

import re
from typing import Any

import griffe

PACKAGE = "triton_rankloss"
# The directive, then all lines that are empty or deeper.
MATH_BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*| *(?=\n\1 +)))*)", flags=re.MULTILINE)
MATH = re.compile(r":math:`([^`]+)`")
LINK = re.compile(rf":func:`(?:{PACKAGE}\.)?(\w+)`")
METHOD = re.compile(r":meth:`(\w+)`")
RETURNS = re.compile(r"^( *Returns:\n *)", flags=re.MULTILINE)


def to_markdown(docstring: str) -> str:
    """The same text with Markdown's forms of mathematics and links."""
    text = MATH_BLOCK.sub(_display, docstring)
    text = MATH.sub(lambda match: f"${match[1].strip()}$", text)
    text = LINK.sub(rf"[`\1`][{PACKAGE}.\1]", text)
    return METHOD.sub(r"`\1`", text)


def _display(match: re.Match[str]) -> str:
    """Each paragraph of the directive is an equation."""
    paragraphs = re.split(r"\n\s*\n", match[2].strip())
    equations = [" ".join(line.strip() for line in paragraph.splitlines()) for paragraph in paragraphs]
    return "\n\n".join(f"{match[1]}$$\n{match[1]}{equation}\n{match[1]}$$" for equation in equations)


class Docstrings(griffe.Extension):
    """Rewrites every docstring of the package before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of modules, classes and functions alike."""
        if obj.docstring is None:
            return
        obj.docstring.value = to_markdown(obj.docstring.value)
        if isinstance(obj, griffe.Function) and obj.returns is not None:
            # What stands before the first colon is read as a type: put it there.
            obj.docstring.value = RETURNS.sub(rf"\g<1>{obj.returns}: ", obj.docstring.value)

"""Docstrings for the API pages, as an extension of griffe, which reads them."""

import re
from typing import Any

import griffe

from tools.site import markup

RETURNS = re.compile(r"^( *Returns:\n *)", flags=re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring of the package before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of modules, classes and functions alike."""
        if obj.docstring is None:
            return
        obj.docstring.value = markup.from_docstring(obj.docstring.value)
        if isinstance(obj, griffe.Function) and obj.returns is not None:
            # What stands before the first colon is read as a type: put it there.
            obj.docstring.value = RETURNS.sub(rf"\g<1>{obj.returns}: ", obj.docstring.value)

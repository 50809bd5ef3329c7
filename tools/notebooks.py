"""Notebooks from pages: docs/NAME.md is the source of docs/NAME.ipynb.

    python -m tools.notebooks

Python becomes a code cell, `sh` a cell of bash, all else text.
"""

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("quickstart", "gpu")
BLOCK = re.compile(r"^(?:<!-- not run: .* -->\n)?```(python|sh)\n(.*?)^```\n", flags=re.MULTILINE | re.DOTALL)


def notebook(page: str) -> dict[str, Any]:
    """In Jupyter's format, version 4.5."""
    cells: list[dict[str, Any]] = []
    end = 0
    for block in BLOCK.finditer(page):
        language, code = block.groups()
        cells += text_cell(page[end : block.start()])
        source = code if language == "python" else f"%%bash\n{code}"
        cells.append({"cell_type": "code", "execution_count": None, "outputs": [], "source": lines(source)})
        end = block.end()
    cells += text_cell(page[end:])
    for number, cell in enumerate(cells):
        cell |= {"id": f"cell-{number}", "metadata": {}}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "accelerator": "GPU"}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def text_cell(text: str) -> list[dict[str, Any]]:
    """One, or none where there is no text."""
    return [{"cell_type": "markdown", "source": lines(text)}] if text.strip() else []


def lines(text: str) -> list[str]:
    """As the format wants them."""
    return text.strip().splitlines(keepends=True)


def write() -> None:
    """All of them."""
    for name in PAGES:
        made = notebook((DOCS / f"{name}.md").read_text())
        (DOCS / f"{name}.ipynb").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write()

"""Hooks of MkDocs: pages from outside docs/, the text of pages, mathematics, and nothing from elsewhere."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.site import markup, mathematics

ROOT = Path(__file__).parents[2]
MEASURED = (*ROOT.glob("bench/results/*/README.md"), *ROOT.glob("examples/results/*/README.md"))
# Files outside docs/ that are pages of the site, with their pictures, and where.
OUTSIDE = {
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    **{page: f"measured/{page.parent.name}.md" for page in MEASURED},
    **{
        picture: f"measured/{picture.parent.name}/{picture.name}"
        for page in MEASURED
        for picture in page.parent.glob("*.png")
    },
}
LOADED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="((?:https?:)?//[^"]+)"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what lies outside docs/."""
    for path, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Links, pictures in two colours, blocks that are not run."""
    places = {Path(file.abs_src_path): file.src_uri for file in files if file.abs_src_path}
    return markup.from_page(markdown, Path(str(page.file.abs_src_path)), places, ROOT)


def on_page_content(html: str, **_: Any) -> str:
    """Draws the mathematics, of docstrings too."""
    return mathematics.draw_all(html)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """A page that loads something from elsewhere is an error."""
    if found := LOADED.findall(output):
        raise PluginError(f"{page.file.src_uri} loads {', '.join(found)}")
    return output

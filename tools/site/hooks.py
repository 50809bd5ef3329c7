"""Hooks of MkDocs: pages from outside docs/, links, pictures in two colours, blocks that are not run, mathematics."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tools.site import mathematics

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Files of the repository that are pages of the site, and where.
OUTSIDE = {
    ROOT / "CONTRIBUTING.md": "contributing.md",
    ROOT / "CHANGELOG.md": "changelog.md",
    **{
        path: f"measured/{path.parent.name}/{path.name}"
        for page in (*ROOT.glob("bench/results/*/README.md"), *ROOT.glob("examples/results/*/README.md"))
        for path in (page, *page.parent.glob("*.png"))
    },
}

FENCE = re.compile(r"(^ *```.*?^ *```$)", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:)([^)#\s]+)(#[^)]*)?\)")
PICTURE = re.compile(r'<picture>\s*<source [^>]*srcset="([^"]+)">\s*<img alt="([^"]+)" src="([^"]+)">\s*</picture>')
NOT_RUN = re.compile(r"^( *)<!-- not run: (.*?) -->$", flags=re.MULTILINE)
LOADED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="((?:https?:)?//[^"]+)"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what lies outside docs/."""
    for path, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """All that concerns text, but not what stands in code blocks."""
    if page.file.abs_src_path is None:
        return markdown
    source, uri = Path(page.file.abs_src_path), page.file.src_uri
    parts = FENCE.split(markdown)
    parts[::2] = [_rewrite(text, source, uri) for text in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, **_: Any) -> str:
    """Draws the mathematics, of docstrings too."""
    return mathematics.draw_all(html)


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """A page that loads something from elsewhere is an error."""
    if found := LOADED.findall(output):
        raise PluginError(f"{page.file.src_uri} loads {', '.join(found)}")
    return output


def _rewrite(text: str, source: Path, uri: str) -> str:
    text = PICTURE.sub(r"![\2](\3#only-light)\n![\2](\1#only-dark)", text)
    text = NOT_RUN.sub(r'\1<p class="not-run">Not run by the tests: \2.</p>', text)
    return LINK.sub(lambda match: _link(match, source, uri), text)


def _link(match: re.Match[str], source: Path, uri: str) -> str:
    """A link to what the site holds leads there; any other becomes the name of the file."""
    image, text, target, anchor = match[1], match[2], match[3], match[4] or ""
    path = (source.parent / target).resolve()
    if path in OUTSIDE or path.is_relative_to(DOCS):
        place = OUTSIDE.get(path) or path.relative_to(DOCS).as_posix()
        return f"{image}[{text}]({os.path.relpath(place, os.path.dirname(uri) or '.')}{anchor})"
    bare, name = text.replace("`", ""), path.relative_to(ROOT).as_posix()
    return f"`{bare}`" if bare.rstrip("/").endswith(path.name) else f"{text} (`{name}`)"

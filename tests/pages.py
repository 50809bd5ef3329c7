"""Pages of the project, and the code blocks on them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
BLOCK = re.compile(
    r"^ *(?:<!-- not run: (?P<reason>.+) -->\n *)?```(?P<language>\w*)\n(?P<code>.*?)^ *```$",
    flags=re.MULTILINE | re.DOTALL,
)
COMMANDS = ("cd", "git", "make", "nvidia-smi", "pip", "pytest", "python", "tar")


class Block(NamedTuple):
    language: str
    code: str
    reason: str | None  # why it is not run
    line: int

    @property
    def is_command(self) -> bool:
        """Labelled as one, or without a label but like one."""
        words = self.code.split()
        return self.language == "sh" or (not self.language and bool(words) and words[0] in COMMANDS)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found["language"], found["code"], found["reason"], text[: found.start()].count("\n") + 1)
        for found in BLOCK.finditer(text)
    ]

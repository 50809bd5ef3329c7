"""results.json, the same for every stack: which model was trained with which loss, and the AP that it reached.

A file holds runs of one stack under one set of settings; a run is a model, a loss and a seed. It is written after every
run: a command that was killed goes on where it stopped.

    python examples/results.py examples/results/torchvision/results.json    # its table, as the pages in docs/ show it
"""

import argparse
import json
import os
import statistics
from importlib.metadata import version
from pathlib import Path

from data import InputError

KEYS = ("ap", "ap50", "ap75")


def check_writable(folder: Path) -> None:
    """Rather before the training than after it."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"cannot write to {folder}: {existing} is not a writable folder")


class Results:
    """`folder`/results.json: what is there already, and what is added."""

    def __init__(self, folder: Path, packages: tuple[str, ...], settings: dict):
        check_writable(folder)
        self.path = folder / "results.json"
        self.runs: list[dict] = []
        self.head = {"versions": {name: version(name) for name in ("torch", *packages)}, "settings": settings}
        if self.path.exists():
            found = json.loads(self.path.read_text())
            if found["settings"] != settings:
                raise InputError(f"{self.path} was made with other settings: remove it or choose another folder")
            self.runs = found["runs"]

    def has(self, model: str, loss: str, seed: int) -> bool:
        """Whether this run is done."""
        return any((run["model"], run["loss"], run["seed"]) == (model, loss, seed) for run in self.runs)

    def add(self, run: dict) -> None:
        """Keep a run: its model, loss, seed, ap, ap50, ap75, seconds and whatever else it has to say."""
        self.runs.append(run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({**self.head, "runs": self.runs}, indent=1) + "\n")
        unfinished.replace(self.path)


def table(runs: list[dict]) -> str:
    """Mean over the seeds, in Markdown; with several seeds, the least and the greatest AP beside it."""
    rows: dict[tuple[str, str], list[dict]] = {}
    for run in runs:
        rows.setdefault((run["model"], run["loss"]), []).append(run)
    lines = ["| model | loss | AP | AP50 | AP75 |", "|---|---|---|---|---|"]
    for (model, loss), found in rows.items():
        means = [f"{statistics.mean(run[key] for run in found):.3f}" for key in KEYS]
        if len(found) > 1:
            means[0] += f" ({min(run['ap'] for run in found):.3f} to {max(run['ap'] for run in found):.3f})"
        lines.append(f"| {model} | {loss} | {' | '.join(means)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print(table(json.loads(parser.parse_args().file.read_text())["runs"]))

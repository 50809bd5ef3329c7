"""One page about a run of `bench.gpu_run`, made of the files that its steps wrote."""

import json
from pathlib import Path
from xml.etree import ElementTree

from .report import markdown

OF_CHECK = ("loss", "variant", "implementation", "loss_error", "gradient_error", "reference_gradient_error", "speedup")
OF_KERNEL = ("kernel", "registers", "spilled", "shared", "num_warps", "used by", "error")


def summary(machine: dict, outcomes: list[dict], folder: Path) -> str:
    """Markdown; a step that left no file is only in the table of steps."""
    parts = [f"# {machine['device']}", *(f"{key}: {value}" for key, value in machine.items())]
    parts += ["## Steps", table(outcomes, ("name", "status", "seconds", "note"))]
    for make, name in ((checks, "check.json"), (tests, "tests.xml"), (kernels, "kernels.json"), (text, "info.log")):
        if (folder / name).exists():
            try:
                parts += [f"## {name}", *make(folder / name)]
            except (ValueError, KeyError, ElementTree.ParseError) as error:  # cut short by the time limit, say
                parts.append(f"`{name}` cannot be read: {error!r}")
    if (folder / "README.md").exists():
        parts.append("Benchmarks: see [README.md](README.md).")
    return "\n\n".join(parts) + "\n"


def checks(path: Path) -> list[str]:
    """What did not pass, and of float32 the errors against float64 and the speed-up over the reference."""
    rows = json.loads(path.read_text())["rows"]
    red = [row for row in rows if row["status"] != "PASS"]
    found = table(red, ("loss", "variant", "dtype", "status", "note")) or f"All {len(rows)} pass."
    return [found, table([row for row in rows if row["dtype"] == "float32"], OF_CHECK)]


def kernels(path: Path) -> list[str]:
    """Registers and the rest, for every architecture in the file."""
    found = json.loads(path.read_text()).items()
    return [part for arch, content in found for part in (f"{arch}:", table(content["kernels"], OF_KERNEL))]


def tests(path: Path) -> list[str]:
    """Counts, and the names of what failed."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = f"{len(cases) - len(failed) - skipped} passed, {len(failed)} failed, {skipped} skipped"
    return [counts, *(f"- {case.get('classname')}::{case.get('name')}" for case in failed)]


def text(path: Path) -> list[str]:
    return [f"```\n{path.read_text().strip()}\n```"]


def table(rows: list[dict], keys: tuple[str, ...]) -> str:
    """Of rows, what they hold under `keys`."""
    return markdown([[*keys], *([plain(row.get(key)) for key in keys] for row in rows)])


def plain(value: object) -> str:
    return "" if value is None else f"{value:.2g}" if isinstance(value, float) else str(value)

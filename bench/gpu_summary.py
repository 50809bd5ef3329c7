"""One page about a run of `bench.gpu_run`, made of the files that its steps wrote."""

import json
from pathlib import Path
from xml.etree import ElementTree

from .report import markdown

OF_CHECK = ("loss", "variant", "implementation", "loss_error", "gradient_error", "reference_gradient_error", "speedup")
OF_KERNEL = ("kernel", "registers", "spilled", "shared", "num_warps", "used by", "error")


def summary(machine: dict, outcomes: list[dict], folder: Path) -> str:
    """Markdown; a step that left no file is only in the table of steps."""
    parts = [f"# {machine['device']}", *(f"{key}: {value}" for key, value in machine.items() if value)]
    parts += ["## Steps", table(outcomes, ("name", "status", "seconds", "note"))]
    if (folder / "info.log").exists():
        parts += ["```", (folder / "info.log").read_text().strip(), "```"]
    for title, make, name in SECTIONS:
        if (folder / name).exists():
            try:
                parts += [f"## {title}", *make(folder / name)]
            except (ValueError, KeyError, ElementTree.ParseError) as error:  # cut short by the time limit, say
                parts.append(f"`{name}` cannot be read: {error!r}")
    if (folder / "README.md").exists():
        parts.append("Benchmarks: see [README.md](README.md).")
    return "\n\n".join(parts) + "\n"


def checks(path: Path) -> list[str]:
    """Counts, what failed and why, and of float32 the errors against float64 and the speed-up over the reference."""
    rows = json.loads(path.read_text())["rows"]
    counts = (f"{sum(row['status'] == status for row in rows)} {status}" for status in ("PASS", "FAIL", "SKIP"))
    failed = [f"- {row['loss']} ({row['variant']}, {row['dtype']}): {row['note']}" for row in rows if row["note"]]
    return [", ".join(counts), *failed, table([row for row in rows if row["dtype"] == "float32"], OF_CHECK)]


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


SECTIONS = (("Check", checks, "check.json"), ("Tests", tests, "tests.xml"), ("Kernels", kernels, "kernels.json"))


def table(rows: list[dict], keys: tuple[str, ...]) -> str:
    """Of rows, what they hold under `keys`."""
    return markdown([[*keys], *([_plain(row.get(key)) for key in keys] for row in rows)])


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else f"{value:.2g}" if isinstance(value, float) else str(value)

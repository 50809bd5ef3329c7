"""One page about a run of `bench.gpu_run`, made of the files that its steps wrote."""

import json
from pathlib import Path
from xml.etree import ElementTree


def summary(machine: dict, outcomes: list[dict], folder: Path) -> str:
    """Markdown; a step that left no file is only in the table of steps."""
    parts = [f"# {machine['device']}", table(["", ""], [[key, _plain(value)] for key, value in machine.items()])]
    parts += ["## Steps", table(["step", "status", "seconds", ""], [list(map(str, o.values())) for o in outcomes])]
    for title, make, name in SECTIONS:
        path = folder / name
        if path.exists():
            try:
                parts += [f"## {title}", *make(path)]
            except (ValueError, KeyError, ElementTree.ParseError) as error:  # cut short by the time limit, say
                parts.append(f"`{name}` cannot be read: {error!r}")
    if (folder / "README.md").exists():
        parts.append("Benchmarks: see [README.md](README.md).")
    return "\n\n".join(parts) + "\n"


def checks(path: Path) -> list[str]:
    """Of each loss on each form of input: the worst error over dtypes, and the smallest speed-up."""
    rows = json.loads(path.read_text())["rows"]
    counts = {status: sum(row["status"] == status for row in rows) for status in ("PASS", "FAIL", "SKIP")}
    failed = [f"- {row['loss']} ({row['variant']}, {row['dtype']}): {row['note']}" for row in rows if row["note"]]
    lines = []
    for row in rows:
        if row["dtype"] == "float32":
            numbers = [_number(row[key]) for key in ("loss_error", "gradient_error", "reference_gradient_error")]
            speedup = "" if row["speedup"] is None else f"{row['speedup']:.1f}"
            lines.append([row["loss"], row["variant"], row["implementation"], *numbers, speedup, row["status"]])
    head = ["loss, float32", "variant", "runs on", "loss error", "gradient error", "reference's", "speed-up", ""]
    explained = "Errors against float64, relative to the largest entry; speed-up over the reference on this device."
    return [", ".join(f"{count} {status}" for status, count in counts.items()), *failed, explained, table(head, lines)]


def kernels(path: Path) -> list[str]:
    """Registers and the rest, for every architecture in the file."""
    parts = []
    for arch, content in json.loads(path.read_text()).items():
        rows = [
            [row["kernel"], *(_plain(row.get(key)) for key in ("registers", "spilled", "shared", "num_warps")),
             row["used by"], _loops(row), row.get("error", "")]
            for row in content["kernels"]
        ]  # fmt: skip
        head = ["kernel", "registers", "spilled bytes", "shared", "warps", "used by", "FP32 a pair", ""]
        parts += [f"{arch}:", table(head, rows)]
    return parts


def tests(path: Path) -> list[str]:
    """Counts, and the names of what failed."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    counts = f"{len(cases) - len(failed) - len(skipped)} passed, {len(failed)} failed, {len(skipped)} skipped"
    return [counts, *(f"- {case.get('classname')}::{case.get('name')}" for case in failed)]


SECTIONS = (("Check", checks, "check.json"), ("Tests", tests, "tests.xml"), ("Kernels", kernels, "kernels.json"))


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def _loops(row: dict) -> str:
    found = row.get("loops", [])
    return ", ".join(f"{sum(loop['instructions'].values()) / loop['pairs']:.2f}" for loop in found)


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"

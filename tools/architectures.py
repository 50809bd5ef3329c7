"""What `kernels --json` found for all architectures, in short: `python -m tools.architectures out/kernels.json`.

Writes docs/architectures.json, and prints the table of docs/architectures.md.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from triton_rankloss.cli.architectures import ARCHITECTURES

SUMMARY = Path(__file__).parents[1] / "docs" / "architectures.json"


def summary_of(tables: dict[str, Any]) -> dict[str, Any]:
    """Of which losses and dtypes kernels were compiled, and what came out for each architecture."""
    first = tables[next(iter(ARCHITECTURES))]
    return {
        "triton": version("triton"),
        "losses": sorted({name.partition(",")[0] for name in first["launches"]}),
        "dtypes": sorted({row["used by"].rpartition(" ")[2].strip("()") for row in first["kernels"]}),
        "architectures": {arch: _numbers(tables[arch]["kernels"]) for arch in ARCHITECTURES},
    }


def _numbers(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "kernels": len({row["kernel"] for row in rows}),
        "variants": len(rows),
        "spills": sum(row["spilled"] > 0 for row in rows),
        "registers": max(row["registers"] for row in rows),
        "shared": max(row["shared"] for row in rows),
    }


def table_of(summary: dict[str, Any]) -> str:
    """As the page shows it."""
    lines = [
        "| name | GPUs | kernels | variants | spills | registers, at most | shared memory, at most |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for arch, found in summary["architectures"].items():
        numbers = " | ".join(str(found[key]) for key in ("kernels", "variants", "spills", "registers"))
        lines.append(f"| `{arch}` | {ARCHITECTURES[arch]} | {numbers} | {found['shared']:,} bytes |")
    return "\n".join(lines)


def main() -> None:
    """Read, write, print."""
    summary = summary_of(json.loads(Path(sys.argv[1]).read_text()))
    SUMMARY.write_text(json.dumps(summary, indent=1) + "\n")
    print(table_of(summary))


if __name__ == "__main__":
    main()

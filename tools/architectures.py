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


def summary_of(tables: dict[str, Any]) -> dict[str, dict[str, int]]:
    """By architecture: how many kernels compiled, in how many variants, with how many spills and how much of a GPU."""
    return {arch: _summary(tables[arch]["kernels"]) for arch in ARCHITECTURES}


def _summary(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "kernels": len({row["kernel"] for row in rows}),
        "variants": len(rows),
        "spills": sum(row["spilled"] > 0 for row in rows),
        "registers": max(row["registers"] for row in rows),
        "shared": max(row["shared"] for row in rows),
    }


def table(summary: dict[str, dict[str, int]]) -> str:
    """As the page shows it."""
    lines = [
        "| name | GPUs | kernels | variants | spills | registers, at most | shared memory, at most |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for arch, found in summary.items():
        numbers = [str(found[key]) for key in ("kernels", "variants", "spills", "registers")]
        lines.append(f"| `{arch}` | {ARCHITECTURES[arch]} | {' | '.join(numbers)} | {found['shared']:,} bytes |")
    return "\n".join(lines)


def main() -> None:
    """Read, write, print."""
    summary = summary_of(json.loads(Path(sys.argv[1]).read_text()))
    content = {"triton": version("triton"), "architectures": summary}
    SUMMARY.write_text(json.dumps(content, indent=1) + "\n")
    print(table(summary))


if __name__ == "__main__":
    main()

"""Result files of pytest-benchmark, as rows that know their ratios."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from .peers import OURS


class ResultFileError(Exception):
    """A file that holds no results of these suites."""


class Row(NamedTuple):
    """One implementation in one case."""

    key: tuple[str, str, str]  # loss, workload, peer
    quartiles: list[float]  # seconds: lower quartile, median, upper quartile
    info: dict[str, Any]

    @property
    def median(self) -> float:
        return self.quartiles[1]

    @property
    def ratio(self) -> list[float]:
        """Quartiles of its time over ours, of rounds in which both had their turn."""
        return self.info["ratio"]


class Results(NamedTuple):
    """What one file, or several of one machine, holds."""

    machine: dict[str, Any]
    commit: dict[str, Any]
    rows: list[Row]

    def along(self, *axes: str) -> list[Row]:
        """Rows of the suites with these axes; without any, of those that have none."""
        return [row for row in self.rows if row.info.get("axis", "") in (axes or ("",))]


def cases(rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """Rows by (loss, workload), and by peer, in the order of the file, where ours is among them."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row.key[:2], {})[row.key[2]] = row
    return {case: peers for case, peers in found.items() if OURS in peers}


def load(paths: Iterable[Path]) -> Results:
    """All rows of result files that were measured on one machine."""
    origins, rows = [], []
    for path in paths:
        try:
            content = json.loads(path.read_text())
            for benchmark in content["benchmarks"]:
                info, stats = benchmark["extra_info"], benchmark["stats"]
                seconds = info.get("seconds") or [stats[name] for name in ("q1", "median", "q3")]  # a GPU's own first
                rows.append(Row((info["loss"], info["workload"], info["peer"]), seconds, info))
            origins.append((content["machine_info"], content["commit_info"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultFileError(f"{path}: not a result file of these suites ({error!r})") from error
    if not rows or any(origin != origins[0] for origin in origins):
        raise ResultFileError(f"no results, or of several machines or commits: {', '.join(map(str, paths))}")
    return Results(*origins[0], rows)

"""Result files of pytest-benchmark, as rows that know their ratios."""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .peers.peer import OURS


class ResultFileError(Exception):
    """A file that holds no results of these suites."""


@dataclass(frozen=True)
class Row:
    """One implementation in one phase of one case."""

    loss: str
    workload: str
    peer: str
    phase: str
    seconds: list[list[float]]  # [round][repeat]
    info: dict

    @property
    def case(self) -> tuple[str, str]:
        return self.loss, self.workload

    @property
    def rounds(self) -> list[float]:
        """Median seconds of each round."""
        return [statistics.median(taken) for taken in self.seconds]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the rounds, seconds."""
        return quartiles(self.rounds)

    def over(self, other: "Row") -> tuple[float, float, float]:
        """(median, lower, upper quartile) of this row's time over the other's, round by round of the same run."""
        ratios = [mine / theirs for mine, theirs in zip(self.rounds, other.rounds, strict=True)]
        return statistics.median(ratios), *quartiles(ratios)


@dataclass(frozen=True)
class Results:
    """What one file, or several of one machine, holds."""

    machine: dict
    commit: dict
    rows: list[Row]

    def of(self, phase: str = "both", **wanted: object) -> list[Row]:
        """Rows of a phase whose info has the wanted values."""
        return [
            row
            for row in self.rows
            if row.phase == phase and all(row.info.get(key) == value for key, value in wanted.items())
        ]

    def cases(self, rows: Iterable[Row]) -> dict[tuple[str, str], dict[str, Row]]:
        """Rows by case and peer, in the order of the file."""
        found: dict[tuple[str, str], dict[str, Row]] = {}
        for row in rows:
            found.setdefault(row.case, {})[row.peer] = row
        return {case: peers for case, peers in found.items() if OURS in peers}


def quartiles(values: list[float]) -> tuple[float, float]:
    """Lower and upper quartile."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def load(paths: Iterable[Path]) -> Results:
    """All rows of result files that were measured on one machine."""
    machine, commit, rows = {}, {}, []
    for path in paths:
        try:
            content = json.loads(path.read_text())
            rows += [_row(benchmark) for benchmark in content["benchmarks"]]
            found, found_commit = content["machine_info"], content["commit_info"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultFileError(f"{path}: not a result file of these suites ({error!r})") from error
        if machine and (found, found_commit) != (machine, commit):
            raise ResultFileError(f"{path}: measured on another machine, commit or clock than the files before it")
        machine, commit = found, found_commit
    if not rows:
        raise ResultFileError("no results in " + ", ".join(map(str, paths)))
    return Results(machine, commit, rows)


def _row(benchmark: dict) -> Row:
    info, data = benchmark["extra_info"], benchmark["stats"]["data"]
    repeats = info["repeats"]
    seconds = [data[i : i + repeats] for i in range(0, len(data), repeats)]
    return Row(info["loss"], info["workload"], info["peer"], info["phase"], seconds, info)


def exponent(points: list[tuple[float, float]]) -> float:
    """Slope of a straight line through log y over log x."""
    xs, ys = ([math.log(value) for value in column] for column in zip(*points, strict=True))
    return statistics.linear_regression(xs, ys).slope

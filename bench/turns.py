"""Ratios on a noisy machine: in every round all competitors take a turn, so that a slow minute hits all of them."""

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIN_ROUNDS, MAX_ROUNDS, MAX_REPEATS = 5, 30, 5


@dataclass(frozen=True)
class Turns:
    """Seconds of every competitor in every round, and how much of the machine others used meanwhile."""

    seconds: dict[str, list[float]]
    load: float | None  # share of all cores, 0 to 1; None where the system does not say

    def ratio(self, name: str, to: str) -> list[float]:
        """[lower quartile, median, upper quartile] of the time of `name` over that of `to`, round by round."""
        return quartiles([mine / other for mine, other in zip(self.seconds[name], self.seconds[to], strict=True)])


def take_turns(runs: dict[str, Callable[[Any], object]], inputs: Sequence[Any], budget: float) -> Turns:
    """Time `runs` on rotating `inputs` within about `budget` seconds.

    One that takes a tenth of the slowest's time runs more often in a round, which counts its median.
    """
    first = {name: seconds(run, inputs[-1]) for name, run in runs.items()}
    repeats = {name: max(1, min(MAX_REPEATS, int(max(first.values()) / 10 / first[name]))) for name in runs}
    a_round = sum(first[name] * repeats[name] for name in runs)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    names, turn, before, start = list(runs), 0, _processor_seconds(), time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        for _ in range(max(MIN_ROUNDS, min(MAX_ROUNDS, int(budget / a_round))) if runs else 0):
            for name in names:
                samples = [seconds(runs[name], inputs[(turn + i) % len(inputs)]) for i in range(repeats[name])]
                taken[name].append(statistics.median(samples))
                turn += repeats[name]
            # Who follows whom changes, so that nobody always finds the caches of the same predecessor.
            names = names[1:] + names[:1]
    finally:
        gc.enable()
    share = (_processor_seconds() - before) / (time.perf_counter() - start) / (os.cpu_count() or 1)
    return Turns(taken, None if math.isnan(share) else max(0.0, share))


def seconds(run: Callable[..., object], *arguments: Any) -> float:
    """How long a call takes, from an idle device until it is idle again; a GPU keeps its own time."""
    if DEVICE == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run(*arguments)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    begun = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - begun


def quartiles(values: list[float]) -> list[float]:
    """[lower quartile, median, upper quartile]."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def _processor_seconds() -> float:
    """Of all processes but this one; NaN where the system does not say."""
    try:
        used = sum(map(int, Path("/proc/stat").read_text().split()[1:4]))  # user, nice, system
    except (OSError, ValueError):
        return math.nan
    return used / os.sysconf("SC_CLK_TCK") - time.process_time()

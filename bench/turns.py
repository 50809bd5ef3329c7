"""Ratios on a noisy machine: in every round all competitors take a turn, so that a slow minute hits all of them."""

import gc
import statistics
import time
from collections.abc import Callable
from itertools import count
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MIN_ROUNDS, MAX_ROUNDS, MAX_REPEATS = 5, 30, 5


def take_turns(runs: dict[str, Callable[[int], object]], budget: float) -> dict[str, list[float]]:
    """Seconds of `runs`, which are given the number of the turn, in every round; about `budget` in all.

    One that takes a tenth of the slowest's time runs more often in a round, which counts its median.
    """
    turns = count()
    first = {name: seconds(run, next(turns)) for name, run in runs.items()}
    repeats = {name: max(1, min(MAX_REPEATS, int(max(first.values()) / 10 / first[name]))) for name in runs}
    a_round = sum(first[name] * repeats[name] for name in runs)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    gc.collect()
    gc.disable()
    try:
        for _ in range(max(MIN_ROUNDS, min(MAX_ROUNDS, int(budget / a_round))) if runs else 0):
            for name in names:
                samples = [seconds(runs[name], next(turns)) for _ in range(repeats[name])]
                taken[name].append(statistics.median(samples))
            # Who follows whom changes, so that nobody always finds the caches of the same predecessor.
            names = names[1:] + names[:1]
    finally:
        gc.enable()
    return taken


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


def ratio(of: list[float], to: list[float]) -> list[float]:
    """[lower quartile, median, upper quartile] of the ratios of two that took turns, round by round."""
    return quartiles([mine / other for mine, other in zip(of, to, strict=True)])

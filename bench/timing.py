"""Timing: competitors take turns, so that a slow minute of the machine hits all of them; inputs rotate."""

import gc
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .peers.peer import Loss

# The second counts what this process alone computes: with one thread, the clock for a machine shared with others.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
MIN_ROUNDS, MAX_ROUNDS, MAX_REPEATS = 5, 30, 5
QUIET = 0.1  # share of the machine that others may use in a round that counts as undisturbed


class Sample(NamedTuple):
    """Seconds."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        return self.forward + self.backward


def run_once(loss: Loss, problem, clock: Callable[[], float] = time.perf_counter) -> Sample:
    """Time one forward and one backward, from an idle device until it is idle again; a GPU keeps its own time."""
    leaf = problem.leaf.detach().requires_grad_()
    if leaf.device.type == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        torch.cuda.synchronize()
        marks[0].record()
        value = loss(leaf, problem)
        marks[1].record()
        torch.autograd.grad(value, leaf)
        marks[2].record()
        torch.cuda.synchronize()
        return Sample(marks[0].elapsed_time(marks[1]) / 1e3, marks[1].elapsed_time(marks[2]) / 1e3)
    start = clock()
    value = loss(leaf, problem)
    middle = clock()
    torch.autograd.grad(value, leaf)
    return Sample(middle - start, clock() - middle)


def take_turns(
    losses: dict[str, Loss],
    problems: Sequence,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    run: Callable[..., Any] = run_once,
) -> tuple[dict[str, list[list[Any]]], float]:
    """Samples [round][repeat] of every competitor within about `seconds`, and the load they were taken under.

    `run(loss, problem, clock)` takes one; a sample says how long it was by `both`.

    In each round every competitor runs at least once; one that takes a tenth of the slowest's time runs more often.
    On a machine shared with others more rounds are run, and those with the least of others' work are kept.
    """
    first = {name: run(loss, problems[-1], clock).both for name, loss in losses.items()}
    slowest = max(first.values())
    repeats = {name: max(1, min(MAX_REPEATS, int(slowest / 10 / taken))) for name, taken in first.items()}
    a_round = sum(first[name] * repeats[name] for name in losses)
    num_rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, int(seconds / a_round)))

    rounds: list[tuple[float, dict[str, list[Any]]]] = []
    names, turn, start = list(losses), 0, time.perf_counter()
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        while len(rounds) < num_rounds or (
            sum(load <= QUIET for load, _ in rounds) < num_rounds and time.perf_counter() - start < seconds
        ):
            before, samples = Load(), {}
            # Who follows whom changes, so that nobody always finds the caches of the same predecessor.
            shift = len(rounds) % len(names)
            for name in names[shift:] + names[:shift]:
                taken = []
                for _ in range(repeats[name]):
                    taken.append(run(losses[name], problems[turn % len(problems)], clock))
                    turn += 1
                samples[name] = taken
            rounds.append((before.of_others(), samples))
    finally:
        if collecting:
            gc.enable()
    kept = sorted(rounds, key=lambda taken: taken[0])[:num_rounds]
    return {name: [samples[name] for _, samples in kept] for name in losses}, max(load for load, _ in kept)


class Load:
    """How much of the machine other processes use, from this moment on."""

    def __init__(self) -> None:
        self.start = self._now()

    def of_others(self) -> float:
        """Their share of all cores, 0 to 1; NaN where the system does not say."""
        (busy, own, wall), (busy_before, own_before, wall_before) = self._now(), self.start
        passed = (wall - wall_before) * (os.cpu_count() or 1)
        return max(0.0, (busy - busy_before) - (own - own_before)) / passed

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds of processor time that all processes used, that this one used, and on the wall."""
        try:
            user, nice, system = Path("/proc/stat").read_text().split()[1:4]
            busy = (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError):
            busy = float("nan")
        return busy, time.process_time(), time.perf_counter()


class Replay:
    """A clock on which `run` takes as long as the next of the given durations: hands samples to pytest-benchmark.

    pytest-benchmark times one test after the other; samples that were taken in turns reach its tables and files so.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.durations: list[float] = []

    def load(self, durations: list[float]) -> int:
        """Play these next; returns how many there are."""
        self.durations = durations[::-1]
        return len(durations)

    def run(self) -> None:
        self.now += self.durations.pop()

    def time(self) -> float:
        return self.now

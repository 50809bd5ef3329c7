"""One case: all implementations of a loss on the same inputs, checked, then timed in turns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any

from torch import Tensor

from .gate import Errors, RedCheckError, check, errors, loss_and_gradient
from .peers.peer import Loss, Peer
from .resources import launches_and_synchronizations, peak_memory
from .timing import run_once, take_turns

PHASES = ("forward", "backward", "both")


@dataclass
class Result:
    """What was found out about one implementation."""

    errors: Errors | None = None
    failure: str | None = None
    samples: list[list[Any]] = field(default_factory=list)  # [round][repeat]
    extra_memory: int = 0  # bytes, the gradient included
    launches: int | None = None  # GPU only
    synchronizations: int | None = None
    load: float = 0.0  # share of the machine that other processes used while the samples were taken

    def durations(self, phase: str) -> list[float]:
        """Seconds of every sample."""
        return [getattr(sample, phase) for taken in self.samples for sample in taken]

    def info(self) -> dict[str, object]:
        """What goes to the result file beside the durations."""
        found = {f"error_{name}": value for name, value in asdict(self.errors).items()}
        found |= {"repeats": len(self.samples[0]), "extra_memory": self.extra_memory, "load": round(self.load, 2)}
        if self.launches is not None:
            found |= {"launches": self.launches, "synchronizations": self.synchronizations}
        return found


def examine(
    peers: Sequence[Peer], problem: Any, truth: Loss, groups: list[Tensor], call: Callable[[Loss], object]
) -> dict[str, Result]:
    """Check every implementation on `problem` against `truth` in float64; of those that pass, what `call` takes.

    `groups` are masks of the leaf within which gradients are compared.
    """
    device = problem.leaf.device.type
    results = {peer.name: Result() for peer in peers}
    expected = cache(lambda loss: loss_and_gradient(loss, problem.exact()))
    for peer in peers:
        result = results[peer.name]
        try:
            result.errors = errors(loss_and_gradient(peer.loss, problem), expected(peer.truth or truth), groups)
            check(result.errors, problem.leaf.dtype, peer.exact)
        except RedCheckError as red:
            result.failure = f"not the loss it should be: {red}"
        except Exception as failed:  # one that cannot run, for want of memory say, must not end the others' run
            result.failure = f"{type(failed).__name__}: {failed}"
        else:
            result.extra_memory = peak_memory(partial(call, peer.loss), device)
            if device == "cuda":
                result.launches, result.synchronizations = launches_and_synchronizations(partial(call, peer.loss))
    return results


def race(
    peers: Sequence[Peer], results: dict[str, Result], problems: Sequence, seconds: float, clock: Callable[[], float],
    run: Callable[..., Any] = run_once,
) -> None:  # fmt: skip
    """Time those that passed, in turns."""
    passed = {peer.name: peer.loss for peer in peers if results[peer.name].failure is None}
    if passed:
        samples, load = take_turns(passed, problems, seconds, clock, run)
        for name, taken in samples.items():
            results[name].samples, results[name].load = taken, load


def duel(
    peers: Sequence[Peer],
    problems: Sequence,
    truth: Loss,
    groups: list[Tensor],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Result]:
    """Examine every implementation on problems[0], and time those that pass on all."""
    results = examine(peers, problems[0], truth, groups, lambda loss: loss_and_gradient(loss, problems[0]))
    race(peers, results, problems, seconds, clock)
    return results

"""One loss on one workload: every implementation checked, then timed in turns, then by pytest-benchmark."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import cache, partial
from operator import methodcaller
from typing import Any

import torch

from .accuracy import RedCheckError, check, errors
from .peers import OURS, Loss, Peer
from .peers.registry import YARDSTICK, peers_of, truth_of
from .resources import on_gpu, peak_memory
from .training import TRAININGS
from .turns import DEVICE, quartiles, seconds, take_turns
from .workloads import Made, Problem, Workload

CACHES = 2**27  # bytes: rotating inputs together exceed what caches hold
MAX_ROUNDS, SHORT = 30, 0.05  # SHORT: seconds of a call that is worth repeating behind cleared caches
# Buckets meet all positives in a matrix: of more it would take over 1.6 GB a copy.
MAX_POSITIVES_OF_BUCKETS = 20_000
# Along the axes implementations that look at every pair are left out where there are more than so many.
MAX_PAIRS = {"cpu": 3e8, "cuda": 2e10}[DEVICE]
NOT_IN_TRAINING = ("bucketed-search", "vectorized-compiled")  # a training cannot be run with them as they come
LOOK_AT_PAIRS = ("loop", "vectorized", "vectorized-compiled")


def with_peers(cases: Iterable[tuple[str, Workload | Made]]) -> list[tuple[str, Workload | Made, Peer]]:
    """Every (loss, workload) with each implementation that it can be given to."""
    found = []
    for loss, workload in cases:
        without: tuple[str, ...] = NOT_IN_TRAINING if workload in TRAININGS else ()
        if isinstance(workload, Workload):
            positives, logits = workload.num_positives, torch.Size(workload.shape).numel()
            without += ("bucketed", "bucketed-search") if positives > MAX_POSITIVES_OF_BUCKETS else ()
            without += LOOK_AT_PAIRS if "=" in workload.name and positives * logits > MAX_PAIRS else ()
        peers = [*peers_of(loss), *([YARDSTICK] if workload in TRAININGS else [])]
        found += [(loss, workload, peer) for peer in peers if peer.name not in without]
    return found


class Case:
    """What was found out about `peers`: about those that compute what they should, also how long they take."""

    def __init__(
        self,
        loss: str,
        workload: Workload | Made,
        peers: Sequence[Peer],
        budget: float,  # seconds of turns
        bandwidth: float,  # bytes per second
        truth: Loss | None = None,
    ) -> None:
        first = workload.problem(0)
        num_inputs = max(2, min(8, CACHES // (2 * first.leaf.nbytes)))
        self.inputs = [first, *map(workload.problem, range(1, num_inputs))]
        self.budget = budget / len(peers)  # of each by itself
        # The floor is the time to read the input twice and write the gradient once.
        size = {"gradient_bytes": first.leaf.nbytes, "floor": 3 * first.leaf.nbytes / bandwidth}
        self.info = {"loss": loss, "workload": workload.name, "dtype": str(first.leaf.dtype), **first.info, **size}
        self.found: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, str] = {}
        expected = cache(first.exact().loss_and_gradient)
        for peer in peers:
            try:
                true = expected(peer.truth or truth or truth_of(loss))
                wrong = errors(first.loss_and_gradient(peer.loss), true, first.groups())
                check(wrong, first.leaf.dtype, peer.exact)
            except Exception as failed:  # one that cannot run, for want of memory say, must not end the others' run
                self.failures[peer.name] = f"{type(failed).__name__}: {failed}"
            else:
                memory = peak_memory(partial(first.run, peer.loss))
                self.found[peer.name] = {"peer": peer.name, **asdict(wrong), "extra_memory": memory}
        self.runs = {peer.name: methodcaller("run", peer.loss) for peer in peers if peer.name in self.found}
        self.turns = take_turns(self.runs, self.inputs, budget)

    def benchmark(self, benchmark: Any, peer: Peer) -> None:
        """Have the fixture `benchmark` time one implementation; a red check reports no speed."""
        if peer.name in self.failures:
            raise RedCheckError(f"{peer}: {self.failures[peer.name]}")
        run, inputs = self.runs[peer.name], itertools.cycle(self.inputs)
        quarters = quartiles(self.turns.seconds[peer.name])
        benchmark.group = f"{self.info['loss']} {self.info['workload']}"
        benchmark.extra_info |= {**self.info, **self.found[peer.name], "load": self.turns.load}
        if OURS in self.runs:
            benchmark.extra_info["ratio"] = self.turns.ratio(peer.name, OURS)
        if DEVICE == "cuda":
            short = quarters[1] < SHORT
            benchmark.extra_info["seconds"] = on_gpu(lambda: run(next(inputs))) if short else quarters
        rounds = max(3, min(MAX_ROUNDS, int(self.budget / quarters[1])))
        benchmark.pedantic(partial(finish, run), setup=lambda: ((next(inputs),), {}), rounds=rounds)

    def seconds_of_loss(self, peer: Peer) -> float:
        """The median of the loss alone, its forward and backward, where what is timed is more than that."""
        return quartiles([seconds(self.inputs[0].loss_and_gradient, peer.loss) for _ in range(9)])[1]


def finish(run: Callable[[Problem], None], problem: Problem) -> None:
    """Until the device is idle, for a clock of the host."""
    run(problem)
    if DEVICE == "cuda":
        torch.cuda.synchronize()

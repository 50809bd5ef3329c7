"""One loss on one workload: every implementation checked, then timed in turns, then by pytest-benchmark."""

import itertools
from collections.abc import Iterable, Sequence
from functools import cache, partial
from typing import Any

import torch

from .accuracy import RedCheckError, check, errors
from .peers import OURS, Peer
from .peers.registry import FOCAL, peers_of, truth_of
from .resources import copy_bandwidth, peak_memory
from .training import TRAININGS
from .turns import DEVICE, quartiles, ratio, seconds, take_turns
from .workloads import Made, Workload

CACHES = 2**27  # bytes: rotating inputs together exceed what caches hold
MAX_ROUNDS, SHORT = 30, 0.05  # SHORT: seconds of a call that is worth repeating behind cleared caches
# Buckets meet all positives in a matrix: of more it would take over 1.6 GB a copy.
MAX_POSITIVES_OF_BUCKETS = 20_000
# Along the axes implementations that look at every pair are left out where there are more than so many.
MAX_PAIRS = {"cpu": 3e8, "cuda": 2e10}[DEVICE]
NOT_IN_TRAINING = ("bucketed-search", "vectorized-compiled")  # a training cannot be run with them as they come
LOOK_AT_PAIRS = ("loop", "vectorized", "vectorized-compiled")


def name(parameter: Any) -> str:
    return getattr(parameter, "name", parameter)


def with_peers(cases: Iterable[tuple[str, Workload | Made]]) -> list[tuple[str, Workload | Made, Peer]]:
    """Every (loss, workload) with each implementation that it can be given to."""
    found = []
    for loss, workload in cases:
        peers, without = peers_of(loss), list[str]()
        if isinstance(workload, Workload):
            positives, logits = workload.num_positives, torch.Size(workload.shape).numel()
            without += ["bucketed", "bucketed-search"] if positives > MAX_POSITIVES_OF_BUCKETS else []
            without += LOOK_AT_PAIRS if "=" in workload.name and positives * logits > MAX_PAIRS else []
        elif workload in TRAININGS:
            peers, without = [*peers, FOCAL], [*NOT_IN_TRAINING]
        found += [(loss, workload, peer) for peer in peers if peer.name not in without]
    return found


class Case:
    """What was found out about `peers`: about those that compute what they should, also how long they take."""

    def __init__(self, loss: str, workload: Workload | Made, peers: Sequence[Peer], budget: float) -> None:
        """`budget`: seconds of turns."""
        first = workload.problem(0)
        num_inputs = max(2, min(8, CACHES // (2 * first.leaf.nbytes)))
        self.inputs = [first, *map(workload.problem, range(1, num_inputs))]
        self.budget = budget / len(peers)  # of each by itself
        # The floor is the time to read the input twice and write the gradient once.
        size = {"gradient_bytes": first.leaf.nbytes, "floor": 3 * first.leaf.nbytes / copy_bandwidth()}
        self.info = {"loss": loss, "workload": workload.name, "dtype": str(first.leaf.dtype), **first.info, **size}
        self.found: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, str] = {}
        expected = cache(first.exact().loss_and_gradient)
        for peer in peers:
            try:
                true = expected(peer.truth or truth_of(loss))
                wrong = errors(first.loss_and_gradient(peer.loss), true, first.groups())
                check(wrong, first.leaf.dtype, peer.exact)
            except Exception as failed:  # one that cannot run, for want of memory say, must not end the others' run
                self.failures[peer.name] = f"{type(failed).__name__}: {failed}"
            else:
                memory = peak_memory(partial(first.run, peer.loss))
                self.found[peer.name] = {"peer": peer.name, **wrong, "extra_memory": memory}
        runs = {peer.name: partial(self.run, peer) for peer in peers if peer.name in self.found}
        self.turns = take_turns(runs, budget)

    def run(self, peer: Peer, turn: int) -> None:
        self.inputs[turn % len(self.inputs)].run(peer.loss)

    def finish(self, peer: Peer, turn: int) -> None:
        """Until the device is idle, for a clock of the host."""
        self.run(peer, turn)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    def benchmark(self, benchmark: Any, peer: Peer) -> None:
        """Have the fixture `benchmark` time one implementation; a red check reports no speed."""
        if peer.name in self.failures:
            raise RedCheckError(f"{peer.name}: {self.failures[peer.name]}")
        turns, quarters = itertools.count(), quartiles(self.turns[peer.name])
        benchmark.group = f"{self.info['loss']} {self.info['workload']}"
        benchmark.extra_info |= self.info | self.found[peer.name]
        if OURS in self.found:
            benchmark.extra_info["ratio"] = ratio(self.turns[peer.name], self.turns[OURS])
        if DEVICE == "cuda" and quarters[1] < SHORT:
            from triton.testing import do_bench

            # Behind cleared caches, with launches hidden where they can be.
            quarters = [ms / 1e3 for ms in do_bench(lambda: self.run(peer, next(turns)), quantiles=[0.25, 0.5, 0.75])]
        if DEVICE == "cuda":
            benchmark.extra_info["seconds"] = quarters
        rounds = max(3, min(MAX_ROUNDS, int(self.budget / quarters[1])))
        benchmark.pedantic(self.finish, setup=lambda: ((peer, next(turns)), {}), rounds=rounds)

    def seconds_of_loss(self, peer: Peer) -> float:
        """The median of the loss alone, its forward and backward, where what is timed is more than that."""
        return quartiles([seconds(self.inputs[0].loss_and_gradient, peer.loss) for _ in range(9)])[1]

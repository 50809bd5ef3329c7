"""From a duel to pytest-benchmark's table: one test for every implementation and phase of a case."""

import pytest

from .duel import PHASES, Result, duel
from .gate import RedCheckError
from .peers.peer import Peer
from .peers.registry import RANKING, peers_of, truth_of
from .problems import Problem
from .timing import CLOCKS, Replay
from .workloads import BoxWorkload, Workload, num_relevant

CACHES = 2**27  # bytes: rotating inputs together exceed what caches hold
REPLAY = Replay()
Info = dict[str, object]


class Cases:
    """Cases by name; each is measured when its first test asks for it, and only the last one is kept."""

    def __init__(self, request: pytest.FixtureRequest, device: str, bandwidth: float) -> None:
        self.config, self.device, self.bandwidth = request.config, device, bandwidth
        self.key: tuple[str, str] | None = None
        self.results: dict[str, Result] = {}
        self.info: Info = {}

    def measure(self, loss: str, workload: Workload | BoxWorkload, peers: list[Peer], **info: object) -> None:
        """Have the duel of this case, unless it was the last one."""
        if (loss, workload.name) == self.key:
            return
        self.key, self.results = (loss, workload.name), {}
        first = workload.problem(0, self.device)
        num_problems = max(2, min(8, CACHES // (2 * first.leaf.nbytes)))
        problems = [first] + [workload.problem(seed, self.device) for seed in range(1, num_problems)]
        groups = groups_of(first)
        seconds, clock = self.config.getoption("--seconds"), CLOCKS[self.config.getoption("--clock")]
        self.results = duel(peers, problems, truth_of(loss), groups, seconds, clock)
        self.info = {
            "loss": loss,
            **describe(loss, workload, first),
            "gradient_bytes": first.leaf.nbytes,
            "floor": 3 * first.leaf.nbytes / self.bandwidth,  # seconds: input read twice, gradient written once
            **info,
        }

    def report(self, benchmark, peer: str, phase: str) -> None:
        """Hand what `peer` took to the fixture `benchmark`."""
        hand_over(benchmark, self.results[peer], peer, phase, self.info)


def hand_over(benchmark, result: Result, peer: str, phase: str, info: Info) -> None:
    """Give samples to the fixture `benchmark`; a red check reports no speed."""
    if result.failure is not None:
        benchmark.skipped = True
        raise RedCheckError(f"{peer}: {result.failure}")
    benchmark.group = f"{info['loss']} {info['workload']} {phase}"
    benchmark.extra_info |= {**info, "peer": peer, "phase": phase, **result.info()}
    benchmark.pedantic(REPLAY.run, rounds=REPLAY.load(result.durations(phase)))


def groups_of(problem: object) -> list:
    """Masks of the positives and of the negatives; of boxes, everything."""
    if not isinstance(problem, Problem):
        return [slice(None)]
    targets = problem.dense()
    return [targets > 0, targets == 0]


def describe(loss: str, workload: Workload | BoxWorkload, problem: object) -> Info:
    """Names and sizes of a case."""
    info: Info = {"workload": workload.name, "dtype": str(workload.dtype).removeprefix("torch.")}
    if not isinstance(problem, Problem):
        return info | {"boxes": problem.leaf.shape[0]}
    info |= {
        "scores": workload.scores,
        "form": "labels" if workload.labels else "dense",
        "logits": problem.logits.numel(),
        "positives": workload.num_positives,
        "classes": problem.logits.shape[-1],
    }
    return info | {"relevant": num_relevant(problem)} if loss in RANKING else info


def wanted_peers(config: pytest.Config, loss: str) -> list[Peer]:
    """Those named by --peers; without it all."""
    names = config.getoption("--peers")
    return [peer for peer in peers_of(loss) if names is None or peer.name in names.split(",")]


def parametrize(
    metafunc: pytest.Metafunc, cases: list[tuple[str, str, list[Peer]]], phases: tuple[str, ...] = PHASES
) -> None:
    """One test for every (loss, workload, peer, phase)."""
    rows = [(loss, name, peer.name, phase) for loss, name, peers in cases for peer in peers for phase in phases]
    metafunc.parametrize(("loss", "workload", "peer", "phase"), rows, ids=["-".join(row) for row in rows])

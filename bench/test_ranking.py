"""AP, aLRP and Rank & Sort Loss beside what a user would pick instead."""

from dataclasses import replace

import pytest
import torch

from .conftest import CLOCKS
from .duel import PHASES, duel
from .gate import loss_and_gradient
from .peers import RANKING
from .suite import REPLAY, Cases, report
from .workloads import num_relevant, workloads

ALL = {device: [workload.name for workload in workloads(device)] for device in ("cpu", "cuda")}
# AP on everything; what differs in aLRP and Rank & Sort Loss is among the positives.
FEW = {"cpu": ["million-init", "million-trained"], "cuda": ["retinanet-init", "retinanet-trained"]}
CACHES = 2**27  # bytes: rotating inputs together exceed what caches hold


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device, wanted = metafunc.config.getoption("--device"), metafunc.config.getoption("--peers")
    cases = []
    for loss, peers in RANKING.items():
        for workload in (ALL if loss == "ap" else FEW)[device]:
            names = [name for name in peers if wanted is None or name in wanted.split(",")]
            cases += [(loss, workload, peer, phase) for peer in names for phase in PHASES]
    metafunc.parametrize(("loss", "workload", "peer", "phase"), cases, ids=["-".join(case) for case in cases])


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest, device: str, bandwidth: float) -> Cases:
    config = request.config

    def run(loss: str, name: str):
        workload = next(workload for workload in workloads(device) if workload.name == name)
        size = torch.Size(workload.shape).numel() * 8  # logits and dense targets
        problems = [workload.problem(seed, device) for seed in range(max(2, min(8, CACHES // size)))]
        problem = problems[0]
        exact = replace(problem, logits=problem.logits.double())
        expected = loss_and_gradient(RANKING[loss]["vectorized"].loss, exact)
        targets = problem.dense()
        wanted = config.getoption("--peers")
        peers = [peer for peer in RANKING[loss].values() if wanted is None or peer.name in wanted.split(",")]
        groups = [targets > 0, targets == 0]
        seconds, clock = config.getoption("--seconds"), CLOCKS[config.getoption("--clock")]
        results = duel(peers, problems, expected, groups, seconds, clock)
        logits_bytes = problem.logits.nbytes
        return results, {
            "loss": loss,
            "workload": name,
            "scores": workload.scores,
            "dtype": str(workload.dtype).removeprefix("torch."),
            "form": "labels" if workload.labels else "dense",
            "logits": problem.logits.numel(),
            "positives": workload.num_positives,
            "relevant": num_relevant(problem),
            "gradient_bytes": logits_bytes,
            "floor": 3 * logits_bytes / bandwidth,  # seconds: logits read twice, gradient written once
        }

    return Cases(run)


@pytest.mark.benchmark(timer=REPLAY.time)
def test_ranking(benchmark, cases, loss, workload, peer, phase) -> None:
    report(benchmark, cases(loss, workload), peer, phase)

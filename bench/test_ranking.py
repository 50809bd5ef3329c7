"""AP, aLRP and Rank & Sort Loss beside what a user would pick instead."""

import pytest

from .peers.registry import RANKING
from .suite import REPLAY, Cases, parametrize, wanted_peers
from .workloads import workloads

# AP Loss on everything; what differs in the other two is among the positives.
OF_ALRP_AND_RANK_SORT = ("fewer-init", "million-trained", "retinanet-init", "retinanet-trained")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = [workload.name for workload in workloads(metafunc.config.getoption("--device"))]
    cases = [
        (loss, name, wanted_peers(metafunc.config, loss))
        for loss in RANKING
        for name in names
        if loss == "ap" or name in OF_ALRP_AND_RANK_SORT
    ]
    parametrize(metafunc, cases)


@pytest.mark.benchmark(timer=REPLAY.time)
def test_ranking(benchmark, cases: Cases, device: str, loss: str, workload: str, peer: str, phase: str) -> None:
    found = next(known for known in workloads(device) if known.name == workload)
    cases.measure(loss, found, wanted_peers(cases.config, loss))
    cases.report(benchmark, peer, phase)

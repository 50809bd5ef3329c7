"""AP, aLRP and Rank & Sort Loss beside what a user would pick instead."""

import pytest

from .peers.peer import Peer
from .peers.registry import RANKING
from .suite import REPLAY, Cases, parametrize, wanted_peers
from .workloads import Workload, workloads

# AP Loss on everything; what differs in the other two is among the positives.
OF_ALRP_AND_RANK_SORT = ("fewer-init", "million-trained", "retinanet-init", "retinanet-trained")
# Buckets meet all positives in a matrix: of so many it would take over 1.6 GB a copy.
MAX_POSITIVES_OF_BUCKETS = 20_000


def peers_for(workload: Workload, peers: list[Peer]) -> list[Peer]:
    with_buckets = workload.num_positives <= MAX_POSITIVES_OF_BUCKETS
    return [peer for peer in peers if with_buckets or not peer.name.startswith("bucketed")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases = [
        (loss, workload.name, peers_for(workload, wanted_peers(metafunc.config, loss)))
        for loss in RANKING
        for workload in workloads(metafunc.config.getoption("--device"))
        if loss == "ap" or workload.name in OF_ALRP_AND_RANK_SORT
    ]
    parametrize(metafunc, cases)


@pytest.mark.benchmark(timer=REPLAY.time)
def test_ranking(benchmark, cases: Cases, device: str, loss: str, workload: str, peer: str, phase: str) -> None:
    found = next(known for known in workloads(device) if known.name == workload)
    cases.measure(loss, found, peers_for(found, wanted_peers(cases.config, loss)))
    cases.report(benchmark, peer, phase)

"""IoU-balanced, DR, Harmonic and box losses beside the formula in eager autograd, compiled, and plain focal loss."""

import pytest

from .peers.registry import POINTWISE
from .suite import REPLAY, Cases, parametrize, wanted_peers
from .workloads import BoxWorkload, Workload, box_workloads, pointwise_workloads


def workloads_of(loss: str, device: str) -> tuple[Workload | BoxWorkload, ...]:
    return box_workloads(device) if loss == "giou" else pointwise_workloads(device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device = metafunc.config.getoption("--device")
    cases = [
        (loss, workload.name, wanted_peers(metafunc.config, loss))
        for loss in POINTWISE
        for workload in workloads_of(loss, device)
    ]
    parametrize(metafunc, cases)


@pytest.mark.benchmark(timer=REPLAY.time)
def test_pointwise(benchmark, cases: Cases, device: str, loss: str, workload: str, peer: str, phase: str) -> None:
    found = next(known for known in workloads_of(loss, device) if known.name == workload)
    cases.measure(loss, found, wanted_peers(cases.config, loss))
    cases.report(benchmark, peer, phase)

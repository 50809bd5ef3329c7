"""AP Loss against the number of negatives, of positives, of classes, and the share of negatives that matter."""

from dataclasses import replace

import pytest

from .peers.peer import Peer
from .suite import REPLAY, Cases, parametrize, wanted_peers
from .workloads import Workload

CLASSES = 80
# Implementations that look at every pair are left out where there are more than so many.
MAX_PAIRS = {"cpu": 3e8, "cuda": 1e13}
LOOKS_AT_PAIRS = ("loop", "vectorized", "vectorized-compiled")


def axes(device: str) -> dict[str, list[Workload]]:
    """Workloads along each axis; the name of one is its axis and the value there."""
    on_gpu = device == "cuda"
    base = Workload("", (200_000 if on_gpu else 3_125, CLASSES), 400 if on_gpu else 100, "init", labels=True)
    decades = (1e5, 1e6, 1e7, 1e8, 1e9) if on_gpu else (1e4, 1e5, 1e6, 4e6)
    positives = (16, 128, 1024, 8192, 16384) if on_gpu else (16, 64, 256, 1024)
    shares = (0.001, 0.01, 0.1, 0.3, 0.6, 0.99)
    classes = (1, 20, 80, 365, 1203)
    many = replace(base, shape=(12_500, CLASSES)) if not on_gpu else base
    return {
        "negatives": [replace(base, name=f"negatives={n:g}", shape=(round(n / CLASSES), CLASSES)) for n in decades],
        "positives": [replace(base, name=f"positives={p}", num_positives=p) for p in positives],
        "relevant": [replace(many, name=f"relevant={share:g}", scores="trained", relevant=share) for share in shares],
        "classes": [
            replace(base, name=f"classes={c}", shape=(base.shape[0], c), num_positives=base.num_positives)
            for c in classes
        ],
    }


def peers_for(workload: Workload, peers: list[Peer], device: str) -> list[Peer]:
    pairs = workload.num_positives * workload.shape[0] * workload.shape[1]
    return [peer for peer in peers if peer.name not in LOOKS_AT_PAIRS or pairs <= MAX_PAIRS[device]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    device, peers = metafunc.config.getoption("--device"), wanted_peers(metafunc.config, "ap")
    points = [point for along in axes(device).values() for point in along]
    cases = [("ap", point.name, peers_for(point, peers, device)) for point in points]
    parametrize(metafunc, cases, phases=("both",))


@pytest.mark.benchmark(timer=REPLAY.time)
def test_scaling(benchmark, cases: Cases, device: str, loss: str, workload: str, peer: str, phase: str) -> None:
    axis = workload.split("=")[0]
    found = next(point for point in axes(device)[axis] if point.name == workload)
    peers = peers_for(found, wanted_peers(cases.config, loss), device)
    cases.measure(loss, found, peers, axis=axis, at=float(workload.split("=")[1]))
    cases.report(benchmark, peer, phase)

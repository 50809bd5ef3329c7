"""How much of a training step the classification loss takes, with ours and with what a user would pick instead."""

import importlib.util
from functools import cache

import pytest

from .duel import Result, examine, race
from .peers.peer import Peer
from .peers.registry import YARDSTICK, truth_of
from .suite import REPLAY, groups_of, hand_over, wanted_peers
from .timing import CLOCKS
from .training import TRAININGS, Training

# Of the peers those that a training can be run with as they come.
PEERS = ("ours", "loop", "bucketed", "vectorized")
LOSSES = ("ap", "rank_sort")
PHASES = ("loss", "step")


def competitors(config: pytest.Config, loss: str) -> list[Peer]:
    return [*(peer for peer in wanted_peers(config, loss) if peer.name in PEERS), YARDSTICK]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    on_gpu = metafunc.config.getoption("--device") == "cuda"
    names = ["example detector"]
    if on_gpu and importlib.util.find_spec("torchvision"):
        names.append("RetinaNet-R50")
    rows = [
        (name, loss, peer.name, phase)
        for name in names
        for loss in LOSSES
        for peer in competitors(metafunc.config, loss)
        for phase in PHASES
    ]
    metafunc.parametrize(("training", "loss", "peer", "phase"), rows, ids=["-".join(row) for row in rows])


@pytest.fixture(scope="module")
def steps(request: pytest.FixtureRequest, device: str):
    """(training, results by peer) of a training and a loss."""
    pytest.importorskip("sklearn", reason="the example detector's scenes are made of its digits")
    seconds, clock = request.config.getoption("--seconds"), CLOCKS[request.config.getoption("--clock")]
    make = cache(lambda name: TRAININGS[name](device))

    @cache
    def measure(name: str, loss: str) -> tuple[Training, dict[str, Result]]:
        training, peers = make(name), competitors(request.config, loss)
        groups = groups_of(training.problem)
        results = examine(peers, training.problem, truth_of(loss), groups, training.run)
        race(peers, results, [training], seconds, clock, lambda loss, training, clock: training.run(loss, clock))
        return training, results

    return measure


@pytest.mark.benchmark(timer=REPLAY.time)
def test_training(benchmark, steps, training: str, loss: str, peer: str, phase: str) -> None:
    taking, results = steps(training, loss)
    info = {
        "loss": loss,
        "workload": training,
        "axis": "training",
        "images": taking.images.shape[0],
        "logits": taking.problem.logits.numel(),
        "positives": taking.iou.numel(),
    }
    hand_over(benchmark, results[peer], peer, phase, info)

"""How much of a training step the classification loss takes, with ours and with what a user would pick instead."""

import importlib.util
from typing import Any

import pytest

from .cases import Case
from .peers import Peer
from .peers.registry import YARDSTICK, peers_of
from .training import TRAININGS

PEERS = ("ours", "loop", "bucketed", "vectorized")  # those that a training can be run with as they come
ROWS = [
    (loss, training, peer)
    for training, module in TRAININGS.items()
    if importlib.util.find_spec(module)
    for loss in ("ap", "rank_sort")
    for peer in [*(peer for peer in peers_of(loss) if peer.name in PEERS), YARDSTICK]
]


@pytest.mark.parametrize(("loss", "workload", "peer"), ROWS, ids=str)
def test_training(benchmark: Any, case: Case, peer: Peer) -> None:
    case.benchmark(benchmark, peer)
    benchmark.extra_info["loss_seconds"] = case.seconds_of_loss(peer)

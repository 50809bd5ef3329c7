"""How much of a training step the classification loss takes, with ours and with what a user would pick instead."""

import pytest

from .cases import name, with_peers
from .training import TRAININGS

CASES = [(loss, each) for each in TRAININGS for loss in ("ap", "rank_sort")]


@pytest.mark.parametrize(("loss", "workload", "peer"), with_peers(CASES), ids=name)
def test_training(benchmark, case, peer):
    case.benchmark(benchmark, peer)
    benchmark.extra_info["loss_seconds"] = case.seconds_of_loss(peer)

"""Losses of boxes in pairs beside the formula in eager autograd, and compiled."""

import pytest

from .cases import with_peers
from .workloads import BOXES


@pytest.mark.parametrize(("loss", "workload", "peer"), with_peers([("giou", BOXES)]), ids=str)
def test_boxes(benchmark, case, peer):
    case.benchmark(benchmark, peer)

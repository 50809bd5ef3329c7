"""Losses of boxes in pairs beside the formula in eager autograd, and compiled."""

from typing import Any

import pytest

from .cases import Case, with_peers
from .peers import Peer
from .workloads import BOXES


@pytest.mark.parametrize(("loss", "workload", "peer"), with_peers([("giou", BOXES)]), ids=str)
def test_boxes(benchmark: Any, case: Case, peer: Peer) -> None:
    case.benchmark(benchmark, peer)

"""IoU-balanced, DR and Harmonic losses beside the formula in eager autograd, compiled, and plain focal loss."""

from typing import Any

import pytest

from .cases import Case, with_peers
from .peers import Peer
from .workloads import POINTWISE

LOSSES = ("iou_balanced_focal", "iou_balanced_cross_entropy", "dr", "harmonic")


@pytest.mark.parametrize(
    ("loss", "workload", "peer"), with_peers((loss, each) for loss in LOSSES for each in POINTWISE), ids=str
)
def test_pointwise(benchmark: Any, case: Case, peer: Peer) -> None:
    case.benchmark(benchmark, peer)

"""IoU-balanced, DR and Harmonic losses beside the formula in eager autograd, compiled, and plain focal loss."""

import pytest

from .cases import with_peers
from .workloads import POINTWISE

LOSSES = ("iou_balanced_focal", "iou_balanced_cross_entropy", "dr", "harmonic")
CASES = [(loss, each) for loss in LOSSES for each in POINTWISE]


@pytest.mark.parametrize(("loss", "workload", "peer"), with_peers(CASES), ids=str)
def test_pointwise(benchmark, case, peer):
    case.benchmark(benchmark, peer)

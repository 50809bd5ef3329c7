"""Losses that take every logit or box once beside the formula in eager autograd, compiled, and plain focal loss."""

import pytest

from .cases import name, with_peers
from .workloads import BOXES, POINTWISE

LOSSES = ("iou_balanced_focal", "iou_balanced_cross_entropy", "dr", "harmonic")
CASES = [*((loss, each) for loss in LOSSES for each in POINTWISE), ("giou", BOXES)]


@pytest.mark.parametrize(("loss", "workload", "peer"), with_peers(CASES), ids=name)
def test_pointwise(benchmark, case, peer):
    case.benchmark(benchmark, peer)

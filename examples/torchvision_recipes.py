"""How each loss trains torchvision's detectors: what use_loss is given, and the learning rate."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import nn

import triton_rankloss as rankloss

NO_OPTIONS: Mapping[str, bool] = MappingProxyType({})


class Recipe(NamedTuple):
    """`losses`, called with the steps of an epoch, makes the losses; none are torchvision's own."""

    losses: Callable[[int], tuple[nn.Module, ...]]
    learning_rate: float = 4e-3
    options: Mapping[str, bool] = NO_OPTIONS


STOCK = Recipe(lambda _: ())
AP = Recipe(lambda _: (rankloss.APLoss(), rankloss.GeneralizedBoxIoULoss()))
ALRP = Recipe(lambda steps: (rankloss.ALRPLoss(steps_per_epoch=steps),))
RANK_SORT = Recipe(lambda _: (rankloss.RankSortLoss(),))
DR = Recipe(lambda _: (rankloss.DRLoss(per_image=True), rankloss.GeneralizedBoxIoULoss()))
FOCAL_BALANCED = Recipe(lambda _: (rankloss.IoUBalancedFocalLoss(), rankloss.IoUBalancedSmoothL1Loss()))
SOFTMAX_BALANCED = Recipe(lambda _: (rankloss.IoUBalancedCrossEntropyLoss(), rankloss.IoUBalancedSmoothL1Loss()))
FOCAL_HARMONIC = Recipe(lambda _: (rankloss.HarmonicDetectionLoss(classification="focal"),))
SOFTMAX_HARMONIC = Recipe(lambda _: (rankloss.HarmonicDetectionLoss(classification="softmax"),))

DENSE = {
    "stock": STOCK,
    "ap": AP,
    "alrp": ALRP,
    "rank_sort": RANK_SORT,
    "dr": DR,
    "iou_balanced": FOCAL_BALANCED,
    "harmonic": FOCAL_HARMONIC,
}
RECIPES: dict[str, dict[str, Recipe]] = {
    "retinanet": DENSE,
    "fcos": DENSE,
    "faster_rcnn": {
        "stock": STOCK,
        "ap": AP,
        "alrp": ALRP,
        "rank_sort": RANK_SORT,
        "iou_balanced": SOFTMAX_BALANCED,
        "harmonic": SOFTMAX_HARMONIC,
    },
}

"""How each loss trains torchvision's detectors: what use_loss is given, and the learning rate."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import nn

import triton_rankloss as rankloss

NO_OPTIONS: Mapping[str, bool] = MappingProxyType({})


class Recipe(NamedTuple):
    """`losses` makes the losses; none are torchvision's own."""

    losses: Callable[[], tuple[nn.Module, ...]]
    learning_rate: float = 4e-3
    prior: float = 0.01  # the score of every anchor before training, torchvision's own by default
    options: Mapping[str, bool] = NO_OPTIONS


STOCK = Recipe(lambda: ())
AP = Recipe(lambda: (rankloss.APLoss(), rankloss.GeneralizedBoxIoULoss()))
# Epochs of a training this short are too few to balance by: after every ten steps instead.
ALRP = Recipe(lambda: (rankloss.ALRPLoss(steps_per_epoch=10),))
RANK_SORT = Recipe(lambda: (rankloss.RankSortLoss(),))
# It compares probabilities: see examples/recipes.py.
DR = Recipe(lambda: (rankloss.DRLoss(per_image=True), rankloss.GeneralizedBoxIoULoss()), prior=0.3)
HARMONIC = Recipe(lambda: (rankloss.HarmonicDetectionLoss(classification="focal"),))
DENSE = {"stock": STOCK, "ap": AP, "alrp": ALRP, "rank_sort": RANK_SORT, "dr": DR, "harmonic": HARMONIC}


def without_centerness(recipe: Recipe) -> Recipe:
    """As the paper of Rank & Sort Loss trains: scores that are sorted by IoU need no centerness beside them."""
    return recipe._replace(options={"centerness": False})


RETINANET = DENSE | {
    "iou_balanced": Recipe(lambda: (rankloss.IoUBalancedFocalLoss(), rankloss.IoUBalancedSmoothL1Loss())),
}
FCOS = DENSE | {
    "ap": without_centerness(AP),
    "alrp": without_centerness(ALRP),
    "rank_sort": without_centerness(RANK_SORT),
    "rank_sort_centerness": RANK_SORT,
    "dr": without_centerness(DR),
    # Boxes by FCOS's own loss: they are points before training, where smooth L1 has an IoU, and so a weight, of 0.
    "iou_balanced": Recipe(lambda: (rankloss.IoUBalancedFocalLoss(),)),
}
FASTER_RCNN = {
    "stock": STOCK,
    "ap": AP,
    "alrp": ALRP,
    "rank_sort": RANK_SORT,
    "iou_balanced": Recipe(lambda: (rankloss.IoUBalancedCrossEntropyLoss(), rankloss.IoUBalancedSmoothL1Loss())),
    # Its IoU part, beside smooth L1 of the deltas, gave a lower AP here.
    "harmonic": Recipe(lambda: (rankloss.HarmonicDetectionLoss(classification="softmax", iou_weight=0.0),)),
}
RECIPES = {
    "retinanet": RETINANET,
    "fcos": FCOS,
    # Its hidden layers are not normalized: 4e-3 gave a lower AP with torchvision's own loss, but a higher one with Rank
    # & Sort Loss.
    "faster_rcnn": {
        loss: recipe._replace(learning_rate=4e-3 if loss == "rank_sort" else 2e-3)
        for loss, recipe in FASTER_RCNN.items()
    },
}

"""Ten positives and a hundred negatives, and what each loss does to their logits."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import triton_rankloss as rankloss

IOU = torch.tensor([0.62, 0.55, 0.81, 0.58, 0.90, 0.71, 0.66, 0.94, 0.76, 0.87], dtype=torch.float64)
POSITIVES = torch.tensor([-3.0, -2.1, -1.5, -0.8, -0.3, 0.4, 1.0, 1.7, 2.4, 3.2], dtype=torch.float64)
# (how many, mean, standard deviation): easy, less easy, and hard negatives
DIFFICULTIES = {"easy": (70, -4.6, 0.7), "medium": (20, -2.0, 0.6), "hard": (10, 0.8, 0.7)}


def spread(number: int, mean: float, deviation: float) -> Tensor:
    """The quantiles of a normal distribution in place of a draw from it."""
    levels = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    return torch.distributions.Normal(mean, deviation).icdf(levels)


NEGATIVES = {name: spread(*values) for name, values in DIFFICULTIES.items()}
LOGITS = torch.cat([POSITIVES, *NEGATIVES.values()])
TARGETS = (torch.arange(len(LOGITS)) < len(POSITIVES)).double()
# Boxes that have these IoU with the unit square.
TARGET_BOXES = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64).expand(len(IOU), 4)
BOXES = TARGET_BOXES.clone()
BOXES[:, 2] = IOU


class Drawn(NamedTuple):
    """A loss over the scene."""

    title: str
    loss: Callable[[Tensor], Tensor]  # of the logits
    uses_iou: bool = False


def cross_entropy(logits: Tensor) -> Tensor:
    """Sigmoid cross-entropy, for comparison."""
    return F.binary_cross_entropy_with_logits(logits, TARGETS, reduction="sum") / len(POSITIVES)


def focal(logits: Tensor) -> Tensor:
    """Focal loss with its usual parameters, for comparison."""
    distance = (TARGETS - logits.sigmoid()).abs()
    weights = torch.where(TARGETS > 0, 0.25, 0.75) * distance**2
    losses = F.binary_cross_entropy_with_logits(logits, TARGETS, reduction="none")
    return (weights * losses).sum() / len(POSITIVES)


def rank_sort(logits: Tensor) -> Tensor:
    """Both parts."""
    parts = rankloss.rank_sort_loss(logits, TARGETS, IOU)
    return parts.ranking + parts.sorting


def harmonic(logits: Tensor) -> Tensor:
    """Focal loss in harmony with the IoU loss."""
    return rankloss.harmonic_detection_loss(logits, TARGETS, BOXES, TARGET_BOXES, classification="focal")


DRAWN = {
    "cross_entropy": Drawn("sigmoid cross-entropy", cross_entropy),
    "focal": Drawn("focal loss", focal),
    "ap": Drawn("AP Loss", lambda logits: rankloss.ap_loss(logits, TARGETS)),
    "alrp": Drawn("aLRP Loss", lambda logits: rankloss.alrp_loss(logits, TARGETS, 1 - IOU).classification, True),
    "rank_sort": Drawn("Rank & Sort Loss", rank_sort, True),
    "dr": Drawn("DR Loss", lambda logits: rankloss.dr_loss(logits, TARGETS)),
    "iou_balanced": Drawn(
        "IoU-balanced focal loss", lambda logits: rankloss.iou_balanced_focal_loss(logits, TARGETS, IOU), True
    ),
    "harmonic": Drawn("harmonic loss", harmonic, True),
}


def push(loss: Callable[[Tensor], Tensor], logits: Tensor = LOGITS) -> Tensor:
    """Minus the gradient (AP, aLRP and Rank & Sort: the update) of every logit: how hard it is pushed up."""
    leaf = logits.clone().requires_grad_()
    return -torch.autograd.grad(loss(leaf), leaf)[0]


def shares(pushes: Tensor) -> dict[str, float]:
    """How much of the push on all negatives each difficulty receives."""
    parts = pushes[len(POSITIVES) :].split([len(of_kind) for of_kind in NEGATIVES.values()])
    total = sum(part.sum() for part in parts)
    return {name: float(part.sum() / total) for name, part in zip(NEGATIVES, parts, strict=True)}

"""How each loss trains the detector: what it is given, the weight of the boxes, the learning rate."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

import triton_rankloss as rankloss


class Matches(NamedTuple):
    """The detector's outputs beside what they should be; the P positives are in row-major order of `labels`."""

    logits: Tensor  # [B, A, C]
    labels: Tensor  # [B, A]; C is background, -1 ignored
    deltas: Tensor  # [P, 4], from the box tower
    target_deltas: Tensor  # [P, 4]
    boxes: Tensor  # [P, 4], `deltas` decoded
    target_boxes: Tensor  # [P, 4]


class Recipe(nn.Module):
    """From matches to the named parts of the loss, weighted: their sum is minimized."""

    learning_rate = 4e-3
    prior = 0.01  # the score of every anchor before training

    def end_epoch(self) -> None:
        """Called after every epoch, for losses that balance their parts by epoch."""

    def span(self, group: ProcessGroup) -> None:
        """Let every loss that can rank or sum over the batches of all processes do so."""
        for loss in self.modules():
            if hasattr(loss, "group"):
                loss.group = group


def giou(matches: Matches) -> Tensor:
    """Mean GIoU loss of the positives."""
    return rankloss.generalized_box_iou_loss(matches.boxes, matches.target_boxes, reduction="mean")


class Focal(Recipe):
    """Sigmoid focal loss in plain torch, the baseline.

    A box weight of 2 gave a higher AP than 1 on blood cells, and a lower one on digits. With `smooth_l1` its boxes are
    trained as those of the IoU-balanced and Harmonic losses, without their factors: what these factors do is the
    difference.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, box_weight: float = 1.0, smooth_l1: bool = False):
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.box_weight = box_weight
        self.smooth_l1 = smooth_l1

    def forward(self, matches: Matches) -> dict[str, Tensor]:
        """Class and box parts."""
        num_classes = matches.logits.shape[-1]
        targets = F.one_hot(matches.labels.clamp(min=0), num_classes + 1)[..., :num_classes].to(matches.logits)
        probabilities = matches.logits.sigmoid()
        weights = torch.where(targets > 0, self.alpha, 1 - self.alpha) * (targets - probabilities).abs() ** self.gamma
        weights = weights * (matches.labels >= 0).unsqueeze(-1)
        losses = weights * F.binary_cross_entropy_with_logits(matches.logits, targets, reduction="none")
        positives = max(1, len(matches.boxes))
        if self.smooth_l1:
            box = F.smooth_l1_loss(matches.deltas, matches.target_deltas, reduction="sum") / positives
        else:
            box = giou(matches)
        return {"class": losses.sum() / positives, "box": self.box_weight * box}


class AP(Recipe):
    """AP Loss. A box weight of 1 gave a lower AP than 2, on digits and on blood cells."""

    def __init__(self, box_weight: float = 2.0):
        super().__init__()
        self.loss = rankloss.APLoss()
        self.box_weight = box_weight

    def forward(self, matches: Matches) -> dict[str, Tensor]:
        """Class and box parts."""
        return {"class": self.loss(matches.logits, matches.labels), "box": self.box_weight * giou(matches)}


class ALRP(Recipe):
    """aLRP Loss, which balances the boxes itself: after every epoch, as its paper does, and after every ten steps.

    In trainings of a few hundred steps epochs alone gave an AP lower by 0.02 to 0.03 (docs/losses/alrp.md).
    """

    def __init__(self):
        super().__init__()
        self.loss = rankloss.ALRPLoss(steps_per_epoch=10)

    def forward(self, matches: Matches) -> dict[str, Tensor]:
        """Class and box parts."""
        parts = self.loss(matches.logits, matches.labels, pred_boxes=matches.boxes, target_boxes=matches.target_boxes)
        return {"class": parts.classification, "box": parts.localization}

    def end_epoch(self) -> None:
        """Balance."""
        self.loss.end_epoch()


class RankSort(Recipe):
    """Rank & Sort Loss, which balances the boxes itself, by step."""

    def __init__(self):
        super().__init__()
        self.loss = rankloss.RankSortLoss()

    def forward(self, matches: Matches) -> dict[str, Tensor]:
        """Ranking, sorting and box parts."""
        parts = self.loss(matches.logits, matches.labels, pred_boxes=matches.boxes, target_boxes=matches.target_boxes)
        return parts._asdict()


class DR(Recipe):
    """DR Loss, ranked within each image as in its paper.

    It compares probabilities p, so a logit's gradient carries p (1 - p): from a prior of 0.01 classes with few
    positives sink before they have learned anything. Half the box weight, or half the learning rate, gave a lower AP
    on blood cells.
    """

    prior = 0.3

    def __init__(self, box_weight: float = 2.0):
        super().__init__()
        self.loss = rankloss.DRLoss(per_image=True)
        self.box_weight = box_weight

    def forward(self, matches: Matches) -> dict[str, Tensor]:
        """Class and box parts."""
        return {"class": self.loss(matches.logits, matches.labels), "box": self.box_weight * giou(matches)}


class IoUBalanced(Recipe):
    """IoU-balanced focal loss, and smooth L1 on the deltas balanced likewise.

    Smooth L1 sums four deltas, each over its standard deviation. A weight of 1 gave a higher AP on blood cells, and on
    digits, where classes are what is hard, a much lower one.
    """

    def __init__(self, box_weight: float = 0.5):
        super().__init__()
        self.loss = rankloss.IoUBalancedFocalLoss()
        self.box_loss = rankloss.IoUBalancedSmoothL1Loss()
        self.box_weight = box_weight

    def forward(self, matches: Matches) -> dict[str, Tensor]:
        """Class and box parts."""
        boxes = {"pred_boxes": matches.boxes, "target_boxes": matches.target_boxes}
        return {
            "class": self.loss(matches.logits, matches.labels, **boxes),
            "box": self.box_weight * self.box_loss(matches.deltas, matches.target_deltas, **boxes),
        }


class Harmonic(Recipe):
    """Harmonic loss: class and box in one, coupled by their harmonic factors; focal terms, as for a dense head.

    Its box part is a sum over four deltas and an IoU part, and outweighs the focal terms unless both are made smaller:
    the deltas through their unit, in which beta is given too.
    """

    def __init__(self, box_weight: float = 0.25):
        super().__init__()
        self.box_weight = box_weight

    def forward(self, matches: Matches) -> dict[str, Tensor]:
        """The whole."""
        loss = rankloss.harmonic_detection_loss(
            matches.logits,
            matches.labels,
            matches.boxes,
            matches.target_boxes,
            pred_deltas=self.box_weight * matches.deltas,
            target_deltas=self.box_weight * matches.target_deltas,
            beta=self.box_weight,
            iou_weight=1.5 * self.box_weight,
            classification="focal",
        )
        return {"class and box": loss}


RECIPES: dict[str, type[Recipe]] = {
    "focal": Focal,
    "ap": AP,
    "alrp": ALRP,
    "rank_sort": RankSort,
    "dr": DR,
    "iou_balanced": IoUBalanced,
    "harmonic": Harmonic,
}

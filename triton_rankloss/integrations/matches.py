"""What the losses need of a detector, and what each of them makes of it; shared by the integrations.

matches = Matches(logits, labels, deltas, target_deltas, boxes, target_boxes)
losses = detection_parts(rankloss.RankSortLoss(), None, matches)  # {"ranking": ..., "sorting": ..., ...}
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import (
    ALRPLoss,
    APLoss,
    DRLoss,
    HarmonicDetectionLoss,
    IoUBalancedBCELoss,
    IoUBalancedCrossEntropyLoss,
    IoUBalancedFocalLoss,
    IoUBalancedSmoothL1Loss,
    RankSortLoss,
)
from ..boxes import box_iou

OF_CLASSES = (APLoss, DRLoss, IoUBalancedFocalLoss, IoUBalancedBCELoss, IoUBalancedCrossEntropyLoss)
OF_CLASSES_AND_BOXES = (ALRPLoss, RankSortLoss, HarmonicDetectionLoss)


class Matches(NamedTuple):
    """A batch's outputs beside what they should be; the P positives are in row-major order of `labels`."""

    logits: Tensor  # [B, A, C], the anchors of all levels or the proposals; for a softmax C + 1, the background last
    labels: Tensor  # [B, A]; C is background, -1 ignored
    deltas: Tensor  # [P, 4], as the regression head predicts them
    target_deltas: Tensor  # [P, 4]
    boxes: Tensor  # [P, 4], `deltas` decoded: (x1, y1, x2, y2) in pixels of the resized image
    target_boxes: Tensor  # [P, 4]


DetectionLoss = Callable[[Matches], dict[str, Tensor]]


def takes_softmax(loss: nn.Module | DetectionLoss) -> bool:
    """Whether the classes of `loss` compete with each other and with the background, which needs its own channel."""
    return isinstance(loss, IoUBalancedCrossEntropyLoss) or (
        isinstance(loss, HarmonicDetectionLoss) and loss.classification == "softmax"
    )


def check_losses(loss: nn.Module | DetectionLoss, box_loss: nn.Module | None, background_channel: bool = False) -> None:
    """Refuse what `detection_parts` would not know how to call; of a softmax, a head without a background channel."""
    for name, value in (("loss", loss), ("box_loss", box_loss)):
        if isinstance(value, type):
            raise TypeError(f"{name} must be an instance, {value.__name__}(); got the class")
    if isinstance(loss, nn.Module) and not isinstance(loss, (*OF_CLASSES, *OF_CLASSES_AND_BOXES)):
        names = ", ".join(kind.__name__ for kind in (*OF_CLASSES, *OF_CLASSES_AND_BOXES))
        raise TypeError(f"loss must be one of {names}, or a function of Matches; got {type(loss).__name__}")
    if not callable(loss):
        raise TypeError(f"loss must be a module or a function of Matches; got {type(loss).__name__}")
    if box_loss is not None and not isinstance(loss, OF_CLASSES):
        raise ValueError(f"box_loss must be None: {getattr(loss, '__name__', type(loss).__name__)} has its own")
    if not takes_softmax(loss):
        return
    if not background_channel:
        raise ValueError(f"loss must take sigmoids: the head has no channel for the background; got {loss}")
    if getattr(loss, "background", -1) != -1:
        raise ValueError(f"background must be -1: Matches has its channel last; got {loss}")


def detection_parts(
    loss: nn.Module | DetectionLoss, box_loss: nn.Module | None, matches: Matches, harmonic_deltas: bool = True
) -> dict[str, Tensor]:
    """The named parts, to be summed; of a loss of the classes alone, without a `box_loss`, that of the classes.

    Without `harmonic_deltas`, `HarmonicDetectionLoss` leaves out smooth L1 of the deltas and looks at the boxes alone.
    """
    parts = _parts(loss, matches, harmonic_deltas)
    if box_loss is not None:
        parts["bbox_regression"] = _box_part(box_loss, matches)
    return parts


def _parts(loss: nn.Module | DetectionLoss, matches: Matches, harmonic_deltas: bool) -> dict[str, Tensor]:
    """The parts of `loss`, under torchvision's names."""
    logits, labels, deltas, target_deltas, boxes, target_boxes = matches
    if isinstance(loss, (APLoss, DRLoss)):
        return {"classification": loss(logits, labels)}
    if isinstance(loss, OF_CLASSES):
        return {"classification": loss(logits, labels, _iou(matches))}
    if isinstance(loss, ALRPLoss):
        classification, localization = loss(logits, labels, pred_boxes=boxes, target_boxes=target_boxes)
        return {"classification": classification, "bbox_regression": localization}
    if isinstance(loss, RankSortLoss):
        ranking, sorting, box = loss(logits, labels, pred_boxes=boxes, target_boxes=target_boxes)
        return {"ranking": ranking, "sorting": sorting, "bbox_regression": box}
    if isinstance(loss, HarmonicDetectionLoss):
        of_deltas = (deltas, target_deltas) if harmonic_deltas else ()
        return {"detection": loss(logits, labels, boxes, target_boxes, *of_deltas)}
    return loss(matches)


def _box_part(box_loss: nn.Module, matches: Matches) -> Tensor:
    if isinstance(box_loss, IoUBalancedSmoothL1Loss):
        return box_loss(matches.deltas, matches.target_deltas, _iou(matches))
    losses = box_loss(matches.boxes, matches.target_boxes)
    return losses.sum() / max(1, losses.numel())


def _iou(matches: Matches) -> Tensor:
    with torch.no_grad():
        return box_iou(matches.boxes, matches.target_boxes)

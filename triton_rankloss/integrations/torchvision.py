"""torchvision's RetinaNet trained with any of the losses: candidates of all levels and images are ranked at once.

    model = retinanet_resnet50_fpn_v2(num_classes=91, score_thresh=0.0)
    use_loss(model, rankloss.RankSortLoss())
    losses = model(images, targets)  # a dict of losses, to be summed, as before

`score_thresh` drops detections by the level of their score; a ranking loss fixes the order of scores, not their level.
Needs torchvision, which ``pip install triton-rankloss[torchvision]`` brings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

from .. import (
    ALRPLoss,
    APLoss,
    DRLoss,
    HarmonicDetectionLoss,
    IoUBalancedBCELoss,
    IoUBalancedFocalLoss,
    IoUBalancedSmoothL1Loss,
    RankSortLoss,
)
from ..boxes import box_iou

_CLASSIFICATION = (APLoss, DRLoss, IoUBalancedFocalLoss, IoUBalancedBCELoss)
_WITH_BOXES = (ALRPLoss, RankSortLoss, HarmonicDetectionLoss)


class Matches(NamedTuple):
    """A batch's outputs beside what they should be; the P positives are in row-major order of `labels`."""

    logits: Tensor  # [B, A, C], the anchors of all levels
    labels: Tensor  # [B, A]; C is background, -1 ignored
    deltas: Tensor  # [P, 4], as the regression head predicts them
    target_deltas: Tensor  # [P, 4]
    boxes: Tensor  # [P, 4], `deltas` decoded: (x1, y1, x2, y2) in pixels of the resized image
    target_boxes: Tensor  # [P, 4]


DetectionLoss = Callable[[Matches], dict[str, Tensor]]


def use_loss(model: RetinaNet, loss: nn.Module | DetectionLoss, box_loss: nn.Module | None = None) -> RetinaNet:
    """Give a RetinaNet another loss: in training it then returns the parts of that one, to be summed.

    Args:
        model: changed in place. Its towers stay, under the same names in `state_dict`; what the loss itself keeps
            (the balancing weight of `ALRPLoss`) joins them as ``head.loss``, and follows the model between devices.
        loss: `APLoss`, `DRLoss`, `IoUBalancedFocalLoss` or `IoUBalancedBCELoss`, for the classification;
            `ALRPLoss`, `RankSortLoss` or `HarmonicDetectionLoss`, for the boxes too; or any function from `Matches` to
            named parts of a loss, for both.
        box_loss: for losses of the classification alone. `IoUBalancedSmoothL1Loss`, or a module called with the boxes
            of the positives [P, 4] and those they should be, of which the mean is taken: `GeneralizedBoxIoULoss` and
            its relatives, `HarmonicIoULoss`. Default: the model's own (L1 of the offsets).

    Returns:
        `model`. With `ALRPLoss`, call ``model.head.loss.end_epoch()`` after every epoch, unless it was given
        `steps_per_epoch`.

    Raises:
        TypeError: `model` is no RetinaNet, or `loss` is a module that none of the above describes.
        ValueError: a `box_loss` beside a loss that has its own.
    """
    if not isinstance(model, RetinaNet):
        raise TypeError(f"model must be a torchvision RetinaNet; got {type(model).__name__}")
    if isinstance(loss, nn.Module) and not isinstance(loss, (*_CLASSIFICATION, *_WITH_BOXES)):
        names = ", ".join(kind.__name__ for kind in (*_CLASSIFICATION, *_WITH_BOXES))
        raise TypeError(f"loss must be one of {names}, or a function of Matches; got {type(loss).__name__}")
    if box_loss is not None and not isinstance(loss, _CLASSIFICATION):
        raise ValueError(f"box_loss must be None: {getattr(loss, '__name__', type(loss).__name__)} has its own")
    model.head = LossHead(model.head, loss, box_loss)
    return model


class LossHead(RetinaNetHead):
    """A RetinaNet head that has the towers of another, and a loss of its own; see `use_loss`."""

    def __init__(self, head: RetinaNetHead, loss: nn.Module | DetectionLoss, box_loss: nn.Module | None) -> None:
        nn.Module.__init__(self)  # RetinaNetHead's own builds towers
        self.classification_head = head.classification_head
        self.regression_head = head.regression_head
        self.loss = loss
        self.box_loss = box_loss

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """The parts of the loss; RetinaNet calls this with the outputs of all levels, concatenated."""
        matches = match(targets, head_outputs, anchors, matched_idxs, self.regression_head.box_coder)
        losses = _parts(self.loss, matches)
        if self.box_loss is not None:
            losses["bbox_regression"] = _box_part(self.box_loss, matches)
        elif isinstance(self.loss, _CLASSIFICATION):
            losses["bbox_regression"] = self.regression_head.compute_loss(targets, head_outputs, anchors, matched_idxs)
        return losses


def match(
    targets: list[dict[str, Tensor]],
    head_outputs: dict[str, Tensor],
    anchors: list[Tensor],
    matched_idxs: list[Tensor],
    box_coder: Any,
) -> Matches:
    """Put the outputs beside their targets; of an anchor, `matched_idxs` is its object, -1 background, -2 ignored."""
    logits = head_outputs["cls_logits"]
    labels, deltas, own, target_boxes = [], [], [], []
    for target, image_deltas, image_anchors, matched in zip(
        targets, head_outputs["bbox_regression"], anchors, matched_idxs, strict=True
    ):
        positive = (matched >= 0).nonzero().squeeze(1)
        objects = matched[positive]
        image_labels = torch.where(matched == -1, logits.shape[-1], -1)
        image_labels[positive] = target["labels"][objects]
        labels.append(image_labels)
        deltas.append(image_deltas[positive])
        own.append(image_anchors[positive])
        target_boxes.append(target["boxes"][objects])
    # Half precision has no digits for pixels.
    found, boxes, positive_anchors = torch.cat(deltas).float(), torch.cat(target_boxes), torch.cat(own)
    return Matches(
        logits,
        torch.stack(labels),
        found,
        box_coder.encode_single(boxes, positive_anchors),
        box_coder.decode_single(found, positive_anchors),
        boxes,
    )


def _parts(loss: nn.Module | DetectionLoss, matches: Matches) -> dict[str, Tensor]:
    """The parts of `loss`, under torchvision's names where they mean the same."""
    logits, labels, deltas, target_deltas, boxes, target_boxes = matches
    if isinstance(loss, (APLoss, DRLoss)):
        return {"classification": loss(logits, labels)}
    if isinstance(loss, (IoUBalancedFocalLoss, IoUBalancedBCELoss)):
        return {"classification": loss(logits, labels, _iou(matches))}
    if isinstance(loss, ALRPLoss):
        classification, localization = loss(logits, labels, pred_boxes=boxes, target_boxes=target_boxes)
        return {"classification": classification, "bbox_regression": localization}
    if isinstance(loss, RankSortLoss):
        ranking, sorting, box = loss(logits, labels, pred_boxes=boxes, target_boxes=target_boxes)
        return {"ranking": ranking, "sorting": sorting, "bbox_regression": box}
    if isinstance(loss, HarmonicDetectionLoss):
        return {"detection": loss(logits, labels, boxes, target_boxes, deltas, target_deltas)}
    return loss(matches)


def _box_part(box_loss: nn.Module, matches: Matches) -> Tensor:
    if isinstance(box_loss, IoUBalancedSmoothL1Loss):
        return box_loss(matches.deltas, matches.target_deltas, _iou(matches))
    losses = box_loss(matches.boxes, matches.target_boxes)
    return losses.sum() / max(1, losses.numel())


def _iou(matches: Matches) -> Tensor:
    with torch.no_grad():
        return box_iou(matches.boxes, matches.target_boxes)

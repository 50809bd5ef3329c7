"""torchvision's RetinaNet trained with any of the losses: candidates of all levels and images are ranked at once.

    model = retinanet_resnet50_fpn_v2(num_classes=91, score_thresh=0.0)
    use_loss(model, rankloss.RankSortLoss())
    losses = model(images, targets)  # a dict of losses, to be summed, as before

`score_thresh` drops detections by the level of their score; a ranking loss fixes the order of scores, not their level.
Needs torchvision, which ``pip install triton-rankloss[torchvision]`` brings.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

from .matches import OF_CLASSES, DetectionLoss, Matches, check_losses, detection_parts


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
    check_losses(loss, box_loss)
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
        losses = detection_parts(self.loss, self.box_loss, matches)
        if isinstance(self.loss, OF_CLASSES) and self.box_loss is None:
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

"""torchvision's RetinaNet, FCOS and Faster R-CNN trained with any of the losses.

    model = retinanet_resnet50_fpn_v2(num_classes=91, score_thresh=0.0)
    use_loss(model, rankloss.RankSortLoss())
    losses = model(images, targets)  # a dict of losses, to be summed, as before

Candidates of all levels and all images of the batch are ranked at once, in Faster R-CNN its sampled proposals.
`score_thresh` drops detections by the level of their score; a ranking loss fixes the order of scores, not their level.
Needs torchvision, which the extra ``torchvision`` brings.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from ..boxes import GeneralizedBoxIoULoss
from .matches import OF_CLASSES, DetectionLoss, Matches, check_losses, detection_parts, takes_softmax

Model = TypeVar("Model", RetinaNet, FCOS, FasterRCNN)
Targets = list[dict[str, Tensor]]


def use_loss(
    model: Model, loss: nn.Module | DetectionLoss, box_loss: nn.Module | None = None, *, centerness: bool = True
) -> Model:
    """Give a detector another loss: in training it then returns the parts of that one, to be summed.

    Args:
        model: a RetinaNet, FCOS or Faster R-CNN, changed in place. Its layers stay, under the same names in
            `state_dict`; what the loss itself keeps (the balancing weight of `ALRPLoss`) joins them as ``head.loss``,
            in Faster R-CNN ``roi_heads.loss``, and follows the model between devices. The loss of the region proposal
            network stays.
        loss: `APLoss`, `DRLoss`, `IoUBalancedFocalLoss` or `IoUBalancedBCELoss`, for the classification; `ALRPLoss`,
            `RankSortLoss` or `HarmonicDetectionLoss`, for the boxes too; or any function from `Matches` to named parts
            of a loss, for both. Faster R-CNN takes two more, of its softmax: `IoUBalancedCrossEntropyLoss` and
            ``HarmonicDetectionLoss(classification="softmax")``. All others make its scores sigmoids, one for each
            class: its background channel is then neither trained nor read.
        box_loss: for losses of the classification alone. `IoUBalancedSmoothL1Loss`, or a module called with the boxes
            of the positives [P, 4] and those they should be, of which the mean is taken: `GeneralizedBoxIoULoss` and
            its relatives, `HarmonicIoULoss`. Default: the model's own (RetinaNet: L1 of the offsets; FCOS: GIoU;
            Faster R-CNN: smooth L1 of the offsets).
        centerness: of FCOS; False takes its centerness out of the scores, for good: the layer is overwritten so that
            it says 1 everywhere, and is not trained.

    Returns:
        `model`. With `ALRPLoss`, call ``loss.end_epoch()`` after every epoch, unless it was given `steps_per_epoch`.

    Raises:
        TypeError: another kind of model, one with masks or keypoints, or a module that none of the above describes.
        ValueError: a `box_loss` beside a loss that has its own; a softmax without background channel, or with its
            `background` elsewhere than at -1, where it is put; `centerness` of another model than FCOS.
    """
    if not isinstance(model, (RetinaNet, FCOS, FasterRCNN)):
        raise TypeError(f"model must be a torchvision RetinaNet, FCOS or FasterRCNN; got {type(model).__name__}")
    check_losses(loss, box_loss, background_channel=isinstance(model, FasterRCNN))
    if not centerness and not isinstance(model, FCOS):
        raise ValueError(f"centerness must be left True: only FCOS has one; got a {type(model).__name__}")
    if isinstance(model, FasterRCNN):
        if model.roi_heads.has_mask() or model.roi_heads.has_keypoint():
            raise TypeError(f"model must be without masks and keypoints; got {type(model).__name__}")
        model.roi_heads = LossRoIHeads(model.roi_heads, loss, box_loss)
    elif isinstance(model, FCOS):
        if not centerness:
            _say_one(model.head.regression_head.bbox_ctrness)
        model.head = FCOSLossHead(model.head, loss, box_loss, centerness)
    else:
        model.head = LossHead(model.head, loss, box_loss)
    return model


class LossHead(RetinaNetHead):
    """A RetinaNet head that has the towers of another, and a loss of its own; see `use_loss`."""

    def __init__(self, head: RetinaNetHead, loss: nn.Module | DetectionLoss, box_loss: nn.Module | None) -> None:
        _take_over(self, head)
        self.loss = loss
        self.box_loss = box_loss

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        """The parts of the loss; RetinaNet calls this with the outputs of all levels, concatenated."""
        matches = match(targets, head_outputs, anchors, matched_idxs, self.regression_head.box_coder)
        losses = detection_parts(self.loss, self.box_loss, matches)
        if isinstance(self.loss, OF_CLASSES) and self.box_loss is None:
            losses["bbox_regression"] = self.regression_head.compute_loss(targets, head_outputs, anchors, matched_idxs)
        return losses


class FCOSLossHead(FCOSHead):
    """An FCOS head that has the towers of another, and a loss of its own; see `use_loss`."""

    def __init__(
        self, head: FCOSHead, loss: nn.Module | DetectionLoss, box_loss: nn.Module | None, centerness: bool
    ) -> None:
        _take_over(self, head)
        self.loss = loss
        self.box_loss = GeneralizedBoxIoULoss() if isinstance(loss, OF_CLASSES) and box_loss is None else box_loss
        self.centerness = centerness

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        """The parts of the loss; FCOS calls this with the outputs of all levels, concatenated."""
        matches = match(targets, head_outputs, anchors, matched_idxs, self.box_coder)
        # Distances of many strides would outweigh everything else, and FCOS itself does not regress them by L1.
        losses = detection_parts(self.loss, self.box_loss, matches, harmonic_deltas=False)
        if self.centerness:
            positive = (matches.labels >= 0) & (matches.labels < matches.logits.shape[-1])
            losses["bbox_ctrness"] = _centerness_loss(head_outputs["bbox_ctrness"][positive], matches.target_deltas)
        return losses


class LossRoIHeads(RoIHeads):
    """RoI heads that have the layers of others, and a loss of their own; see `use_loss`."""

    def __init__(self, heads: RoIHeads, loss: nn.Module | DetectionLoss, box_loss: nn.Module | None) -> None:
        _take_over(self, heads)
        self.loss = loss
        self.box_loss = box_loss

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image, and no losses; in training no detections, and the parts of the loss."""
        if not self.training:
            return super().forward(features, proposals, image_shapes, targets)
        proposals, matched_idxs, labels, target_deltas = self.select_training_samples(proposals, targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, image_shapes)))
        matches = self._match(targets or [], logits, deltas, proposals, matched_idxs, labels, target_deltas)
        losses = detection_parts(self.loss, self.box_loss, matches)
        if isinstance(self.loss, OF_CLASSES) and self.box_loss is None:
            box = smooth_l1_loss(matches.deltas, matches.target_deltas, reduction="sum", beta=1 / 9)
            losses["bbox_regression"] = box / len(logits)
        return [], losses

    def _match(
        self,
        targets: Targets,
        logits: Tensor,
        deltas: Tensor,
        proposals: list[Tensor],
        matched_idxs: list[Tensor],
        image_labels: list[Tensor],
        target_deltas: list[Tensor],
    ) -> Matches:
        """Put the outputs of the proposals beside their targets; `image_labels` has the background at 0."""
        sizes = [len(labels) for labels in image_labels]
        classes = torch.cat(image_labels)
        positive = classes > 0
        boxes = [
            target["boxes"][matched[labels > 0]]
            for target, matched, labels in zip(targets, matched_idxs, image_labels, strict=True)
        ]
        found = deltas.view(len(deltas), -1, 4)[positive, classes[positive]].float()
        labels = torch.where(positive, classes - 1, logits.shape[1] - 1)
        logits = logits.roll(-1, 1) if takes_softmax(self.loss) else logits[:, 1:]
        # An image may have fewer proposals than another.
        return Matches(
            pad_sequence(logits.split(sizes), batch_first=True),
            pad_sequence(labels.split(sizes), batch_first=True, padding_value=-1),
            found,
            torch.cat(target_deltas)[positive],
            self.box_coder.decode_single(found, torch.cat(proposals)[positive]),
            torch.cat(boxes),
        )

    def postprocess_detections(
        self, class_logits: Tensor, box_regression: Tensor, proposals: list[Tensor], image_shapes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes, scores and labels of each image's detections; scores are sigmoids unless the loss takes a softmax."""
        if takes_softmax(self.loss):
            return super().postprocess_detections(class_logits, box_regression, proposals, image_shapes)
        sizes = [len(image) for image in proposals]
        pred_boxes = self.box_coder.decode(box_regression, proposals)
        detections = []
        for image_boxes, scores, shape in zip(
            pred_boxes.split(sizes), class_logits.sigmoid().split(sizes), image_shapes, strict=True
        ):
            # The background, channel 0, competes with nothing here.
            proposal, label = (scores[:, 1:] > self.score_thresh).nonzero(as_tuple=True)
            label = label + 1
            boxes, scores = clip_boxes_to_image(image_boxes[proposal, label], shape), scores[proposal, label]
            keep = remove_small_boxes(boxes, min_size=1e-2)
            boxes, scores, label = boxes[keep], scores[keep], label[keep]
            keep = batched_nms(boxes, scores, label, self.nms_thresh)[: self.detections_per_img]
            detections.append((boxes[keep], scores[keep], label[keep]))
        boxes, scores, labels = (list(column) for column in zip(*detections, strict=True))
        return boxes, scores, labels


def match(
    targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor], box_coder: Any
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
    if isinstance(box_coder, BoxLinearCoder):
        coded = box_coder.encode(positive_anchors, boxes), box_coder.decode(found, positive_anchors)
    else:
        coded = box_coder.encode_single(boxes, positive_anchors), box_coder.decode_single(found, positive_anchors)
    return Matches(logits, torch.stack(labels), found, *coded, boxes)


def _take_over(new: nn.Module, old: nn.Module) -> None:
    """Make `new` of all that `old` holds but for a loss, in place of its own constructor."""
    nn.Module.__init__(new)
    modules = {name: module for name, module in old._modules.items() if name not in ("loss", "box_loss")}
    vars(new).update(vars(old), _modules=modules)


def _centerness_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Mean binary cross-entropy of the positives [P, 1], to how central their points are in their boxes."""
    sides = distances.view(-1, 2, 2)  # left and top, right and bottom
    target = (sides.amin(1) / sides.amax(1)).prod(1).sqrt()
    return binary_cross_entropy_with_logits(logits.squeeze(1), target, reduction="sum") / max(1, len(target))


def _say_one(centerness: nn.Conv2d) -> None:
    """Its sigmoid is 1 from now on, and in every FCOS that loads these weights."""
    nn.init.zeros_(centerness.weight)
    nn.init.constant_(centerness.get_parameter("bias"), 100.0)
    centerness.requires_grad_(False)

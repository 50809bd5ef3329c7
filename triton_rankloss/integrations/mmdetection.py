"""mmdetection 3's RetinaNet and ATSS trained with any of the losses: all levels and images are ranked at once.

    custom_imports = dict(imports=["triton_rankloss.integrations.mmdetection"])
    model = dict(
        bbox_head=dict(type="RankLossRetinaHead", loss=dict(type="RankSortLoss")),
        test_cfg=dict(score_thr=0.0),
    )

A loss in mmdetection's registry is called once for every level of the pyramid, and a ranking loss would rank each by
itself; so these heads take a `loss` beside `loss_cls`. Needs mmdet, mmengine and mmcv: see docs/mmdetection.md.
"""

from typing import Any

import torch
import torch.distributed
from mmdet.models.dense_heads import ATSSHead, RetinaHead
from mmdet.models.dense_heads.anchor_head import AnchorHead
from mmdet.registry import HOOKS, MODELS
from mmdet.structures.bbox import cat_boxes, get_box_tensor
from mmdet.utils import reduce_mean
from mmengine.hooks import Hook
from torch import Tensor, nn

from .. import ALRPLoss, IoUBalancedSmoothL1Loss
from .matches import OF_CLASSES, OF_CLASSES_AND_BOXES, Matches, check_losses, detection_parts

for _kind in (*OF_CLASSES, *OF_CLASSES_AND_BOXES, IoUBalancedSmoothL1Loss):
    MODELS.register_module(module=_kind)

_NAMES = {"classification": "loss_cls", "bbox_regression": "loss_bbox"}


class RankLossHead(AnchorHead):
    """What `RankLossRetinaHead` and `RankLossATSSHead` share; for heads whose `loss_by_feat` is that of `AnchorHead`.

    Args:
        loss: config of `APLoss`, `DRLoss`, `IoUBalancedFocalLoss` or `IoUBalancedBCELoss`, in place of `loss_cls`; or
            of `ALRPLoss`, `RankSortLoss` or `HarmonicDetectionLoss`, in place of `loss_cls` and `loss_bbox`. With
            ``group="world"`` the ranking spans all processes.
        others: as of the head in mmdetection. `loss_cls` is not called, but must say ``use_sigmoid=True``, as its
            default does. `loss_bbox` may be `IoUBalancedSmoothL1Loss`, which ``group="world"`` divides by the positives
            of all processes, as mmdetection's own are.

    Raises:
        TypeError: `loss` is no config, or that of another module.
        ValueError: `loss_cls` is one of a softmax, or `loss` has an argument of wrong range.

    The module is `criterion`: what it keeps (the balancing weight of `ALRPLoss`) is saved with the model.
    """

    def __init__(self, *others: Any, loss: dict[str, Any], **named: Any) -> None:
        if "loss_bbox" in named:
            named["loss_bbox"] = _with_group(named["loss_bbox"])
        super().__init__(*others, **named)
        if not self.use_sigmoid_cls:
            raise ValueError(
                "loss_cls must have use_sigmoid=True: these losses take a logit of each class and no other"
            )
        self.criterion: nn.Module = MODELS.build(_with_group(loss))
        check_losses(self.criterion, None)

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: list[Any],
        batch_img_metas: list[dict[str, Any]],
        batch_gt_instances_ignore: list[Any] | None = None,
    ) -> dict[str, Tensor]:
        """The parts of the loss, from the maps [B, anchors * channels, H, W] of all levels."""
        matches = self.match(cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore)
        balanced = self.loss_bbox if isinstance(self.loss_bbox, IoUBalancedSmoothL1Loss) else None
        of_classes = isinstance(self.criterion, OF_CLASSES)
        parts = detection_parts(self.criterion, balanced if of_classes else None, matches)
        losses = {_NAMES.get(name, f"loss_{name}"): part for name, part in parts.items()}
        if of_classes and balanced is None:
            losses["loss_bbox"] = self._own_box_loss(matches)
        return losses

    def match(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        batch_gt_instances: list[Any],
        batch_img_metas: list[dict[str, Any]],
        batch_gt_instances_ignore: list[Any] | None = None,
    ) -> Matches:
        """Put the outputs of all levels beside the targets that the head's assigner gives them."""
        sizes = [level.shape[-2:] for level in cls_scores]
        anchors, valid = self.get_anchors(sizes, batch_img_metas, device=cls_scores[0].device)
        all_anchors = torch.stack([get_box_tensor(cat_boxes(levels)) for levels in anchors])
        # (labels, their weights, box targets, their weights, number of positives); ATSS returns the anchors before.
        levels = self.get_targets(
            anchors, valid, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore=batch_gt_instances_ignore
        )[-5:-2]
        labels, weights, targets = (torch.cat(level, dim=1) for level in levels)
        # mmdetection marks ignored anchors by weight 0, these losses by label -1.
        labels = torch.where(weights > 0, labels, -1)
        positive = (labels >= 0) & (labels < self.num_classes)
        own, targets = all_anchors[positive], targets[positive]
        # Half precision has no digits for pixels.
        deltas = _flatten(bbox_preds, self.bbox_coder.encode_size)[positive].float()
        if self.reg_decoded_bbox:
            target_boxes, target_deltas = targets, self.bbox_coder.encode(own, targets)
        else:
            target_boxes, target_deltas = get_box_tensor(self.bbox_coder.decode(own, targets)), targets
        return Matches(
            _flatten(cls_scores, self.cls_out_channels),
            labels,
            deltas,
            target_deltas,
            get_box_tensor(self.bbox_coder.decode(own, deltas)),
            target_boxes,
        )

    def _own_box_loss(self, matches: Matches) -> Tensor:
        """`loss_bbox` of the config: the mean over the positives of all processes."""
        count = reduce_mean(matches.deltas.new_tensor(float(len(matches.deltas)))).clamp(min=1)
        if not len(matches.deltas):
            return matches.deltas.sum()  # mmdetection's IoU losses of no box are not connected to the graph
        if self.reg_decoded_bbox:
            return self.loss_bbox(matches.boxes, matches.target_boxes, avg_factor=count)
        return self.loss_bbox(matches.deltas, matches.target_deltas, avg_factor=count)


@MODELS.register_module()
class RankLossRetinaHead(RankLossHead, RetinaHead):
    """RetinaHead with one of the losses; see `RankLossHead`."""


@MODELS.register_module()
class RankLossATSSHead(RankLossHead, ATSSHead):
    """ATSSHead with one of the losses, and without centerness, as arXiv 2107.11669 trains it; see `RankLossHead`."""

    def _init_layers(self) -> None:
        super()._init_layers()
        self.atss_centerness = nn.Identity()

    def forward_single(self, x: Tensor, scale: nn.Module) -> tuple[Tensor, Tensor]:
        """Logits and offsets of a level; scores are then not multiplied by a centerness."""
        return super().forward_single(x, scale)[:2]


@HOOKS.register_module()
class EndEpochHook(Hook):
    """Tells every `ALRPLoss` without `steps_per_epoch` that an epoch has ended, before its checkpoint is written."""

    def after_train_epoch(self, runner: Any) -> None:
        """Balance."""
        for module in runner.model.modules():
            if isinstance(module, ALRPLoss) and module.steps_per_epoch is None:
                module.end_epoch()


def _flatten(levels: list[Tensor], channels: int) -> Tensor:
    """[B, A, channels] from the maps [B, anchors * channels, H, W] of all levels."""
    return torch.cat([level.permute(0, 2, 3, 1).reshape(len(level), -1, channels) for level in levels], dim=1)


def _with_group(loss: dict[str, Any]) -> dict[str, Any]:
    """`loss` with the process group that a config cannot hold; none where a single process trains."""
    if not isinstance(loss, dict):
        raise TypeError(f"loss must be a config, as dict(type='RankSortLoss'); got {type(loss).__name__}")
    if loss.get("group") != "world":
        return loss
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return {**loss, "group": torch.distributed.group.WORLD if several else None}

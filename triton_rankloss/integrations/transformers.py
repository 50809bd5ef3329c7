"""Hugging Face's RT-DETR, RT-DETRv2, D-FINE and Deformable DETR trained with a ranking loss for the classes.

    model = RTDetrForObjectDetection(config)
    use_loss(model, rankloss.RankSortLoss())
    model(pixel_values=images, labels=labels).loss.backward()  # as before, and so in Trainer

Matching and the losses of boxes are those of the library, with the weights of the model's config. Every set of
predictions (each decoder layer, the encoder's, the denoising queries of each layer) is ranked by itself, over all
images of the batch. Needs transformers, scipy and pillow, which the extra ``transformers`` brings.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import (
    ConditionalDetrForObjectDetection,
    DabDetrForObjectDetection,
    DeformableDetrForObjectDetection,
    DFineForObjectDetection,
    PreTrainedModel,
    RTDetrForObjectDetection,
    RTDetrV2ForObjectDetection,
)
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_d_fine import DFineLoss
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
from transformers.loss.loss_rt_detr import RTDetrLoss

from .. import APLoss, DRLoss, IoUBalancedBCELoss, IoUBalancedFocalLoss, RankSortLoss
from ..boxes import box_iou

_DEFORMABLE = (DeformableDetrForObjectDetection, ConditionalDetrForObjectDetection, DabDetrForObjectDetection)
MODELS = (RTDetrForObjectDetection, RTDetrV2ForObjectDetection, DFineForObjectDetection, *_DEFORMABLE)
_OF_SCORES = (APLoss, DRLoss)
_OF_SCORES_AND_IOU = (RankSortLoss, IoUBalancedFocalLoss, IoUBalancedBCELoss)

Labels = list[dict[str, Tensor]]  # per image: "class_labels" [n] and "boxes" [n, 4], centre and size in fractions
Indices = list[tuple[Tensor, Tensor]]  # per image: queries, and the objects that they are matched with
Outputs = dict[str, Tensor]  # "logits" [B, Q, C], "pred_boxes" [B, Q, 4] and D-FINE's own, of one set of predictions


def use_loss(model: PreTrainedModel, loss: nn.Module) -> PreTrainedModel:
    """Give a detector another classification loss.

    Args:
        model: an RT-DETR, RT-DETRv2, D-FINE, Deformable DETR, Conditional DETR or DAB-DETR `...ForObjectDetection`;
            its `loss_function` is set.
        loss: `APLoss`, `RankSortLoss`, `DRLoss`, `IoUBalancedFocalLoss` or `IoUBalancedBCELoss`. With a `group` the
            losses of boxes too are those of the global batch, and every rank must call the model with labels equally
            often.

    Returns:
        `model`. The config's `weight_loss_vfl` (RT-DETR, D-FINE) is the weight of `loss`.

    Raises:
        TypeError: another kind of model or loss.
    """
    if not isinstance(model, MODELS):
        names = ", ".join(kind.__name__ for kind in MODELS)
        raise TypeError(f"model must be one of {names}; got {type(model).__name__}")
    if not isinstance(loss, (*_OF_SCORES, *_OF_SCORES_AND_IOU)):
        names = ", ".join(kind.__name__ for kind in (*_OF_SCORES, *_OF_SCORES_AND_IOU))
        raise TypeError(f"loss must be one of {names}; got {type(loss).__name__}")
    model.loss_function = _loss_function(model, loss)
    return model


def _loss_function(
    model: PreTrainedModel, loss: nn.Module
) -> Callable[..., tuple[Tensor, dict[str, Tensor], list[Outputs] | None]]:
    """For the `loss_function` of `model`, which takes functions alone: a module set there is ignored."""
    deformable = isinstance(model, _DEFORMABLE)
    make_criterion = _deformable_criterion if deformable else _rt_detr_criterion
    make_sets: Callable[..., Iterator[tuple[str, Outputs]]] = _deformable_sets if deformable else _rt_detr_sets

    def loss_function(
        logits: Tensor,
        labels: Labels,
        device: torch.device,
        pred_boxes: Tensor,
        config: Any,
        outputs_class: Any = None,
        outputs_coord: Any = None,
        denoising_meta_values: dict[str, Any] | None = None,
        **more: Any,
    ) -> tuple[Tensor, dict[str, Tensor], list[Outputs] | None]:
        """(loss, its weighted parts, the predictions of the earlier layers if they have losses)."""
        criterion, weights = make_criterion(config)
        criterion.to(device)
        denoising, num_objects, num_noisy = _count(loss.group, logits, labels, denoising_meta_values)
        layers: Outputs = {"logits": outputs_class, "pred_boxes": outputs_coord}
        sets = list(make_sets(config, {"logits": logits, "pred_boxes": pred_boxes}, layers, denoising, **more))
        parts: dict[str, Tensor] = {}
        for suffix, outputs in sets:
            if "_dn_" in suffix:
                indices, normalizer = RTDetrLoss.get_cdn_matched_indices(denoising, labels), num_noisy
            else:
                indices, normalizer = criterion.matcher(outputs, labels), num_objects
            found = criterion.loss_boxes(outputs, labels, indices, normalizer)
            if isinstance(criterion, DFineLoss):
                found |= criterion.loss_local(outputs, labels, indices, normalizer)
            found = {name: weights[name] * part for name, part in found.items()}
            for name, part in _class_parts(loss, outputs, labels, indices).items():
                found[name] = weights.get("loss_vfl", 1.0) * part
            parts |= {name + suffix: part for name, part in found.items()}
        earlier = [outputs for suffix, outputs in sets[1:] if "_dn_" not in suffix]
        return torch.stack(list(parts.values())).sum(), parts, earlier if config.auxiliary_loss else None

    return loss_function


def _rt_detr_criterion(config: Any) -> tuple[Any, dict[str, float]]:
    """The library's, of which matching and losses of boxes are used, and the weights of these."""
    criterion = (DFineLoss if config.model_type == "d_fine" else RTDetrLoss)(config)
    return criterion, criterion.weight_dict


def _deformable_criterion(config: Any) -> tuple[Any, dict[str, float]]:
    matcher = DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    weights = {"loss_bbox": config.bbox_loss_coefficient, "loss_giou": config.giou_loss_coefficient}
    return DeformableDetrImageLoss(matcher, config.num_labels, config.focal_alpha, ["boxes"]), weights


def _count(
    group: Any, logits: Tensor, labels: Labels, denoising: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, float, float]:
    """`denoising`, and the divisors of the losses of boxes: objects, and those of the denoising queries.

    With a group they are means over its ranks. A rank without objects has no denoising queries; where others have
    some it gets sets of none, so that all ranks rank equally many sets.
    """
    num_objects = sum(len(image["class_labels"]) for image in labels)
    counts = [num_objects, num_objects * denoising["dn_num_group"] if denoising else 0]
    world_size = 1
    if group is not None:
        world_size = dist.get_world_size(group)
        total = torch.tensor(counts, device=logits.device)
        dist.all_reduce(total, group=group)
        counts = total.tolist()
    if denoising is None and counts[1] > 0:
        none = torch.zeros(0, dtype=torch.long, device=logits.device)
        split = [0, logits.shape[1]]
        denoising = {"dn_positive_idx": [none] * len(labels), "dn_num_group": 0, "dn_num_split": split}
    return denoising, max(1, counts[0]) / world_size, max(1, counts[1]) / world_size


def _rt_detr_sets(
    config: Any, last: Outputs, layers: Outputs, denoising: dict[str, Any] | None, *,
    enc_topk_logits: Tensor, enc_topk_bboxes: Tensor, predicted_corners: Tensor | None = None,
    initial_reference_points: Tensor | None = None, **_: Any,
) -> Iterator[tuple[str, Outputs]]:  # fmt: skip
    """(suffix of its parts' names, outputs) of every set of RT-DETR or D-FINE; `layers` are [B, L, Q, ...]."""
    encoder = {"logits": enc_topk_logits, "pred_boxes": enc_topk_bboxes}
    if predicted_corners is not None and initial_reference_points is not None:
        for outputs in (last, layers, encoder):
            outputs["pred_boxes"] = outputs["pred_boxes"].clamp(min=0, max=1)
        layers |= {"pred_corners": predicted_corners, "ref_points": initial_reference_points}
    noisy = None
    if denoising is not None:
        split = denoising["dn_num_split"]
        noisy = {name: stack.split(split, dim=2)[0] for name, stack in layers.items()}
        layers = {name: stack.split(split, dim=2)[1] for name, stack in layers.items()}
        last = {name: values.split(split, dim=1)[1] for name, values in last.items()}
    yield "", last
    if config.auxiliary_loss:
        yield from ((f"_aux_{i}", outputs) for i, outputs in enumerate([*_unstack(layers, slice(-1)), encoder]))
    if config.auxiliary_loss and noisy is not None:
        yield from ((f"_dn_{i}", outputs) for i, outputs in enumerate(_unstack(noisy, slice(None))))


def _unstack(layers: Outputs, chosen: slice) -> list[Outputs]:
    """The outputs of each of these layers; those of D-FINE are taught by the last one's."""
    # D-FINE has logits and boxes before its first layer; the library pairs them with the corners of that layer too.
    columns = zip(*(stack.unbind(1)[chosen] for stack in layers.values()), strict=False)
    unstacked = [dict(zip(layers, column, strict=True)) for column in columns]
    if "pred_corners" not in layers:
        return unstacked
    teacher = {"teacher_corners": layers["pred_corners"][:, -1], "teacher_logits": layers["logits"][:, -1]}
    return [outputs | teacher for outputs in unstacked]


def _deformable_sets(config: Any, last: Outputs, layers: Outputs, *_: Any) -> Iterator[tuple[str, Outputs]]:
    """The same of Deformable, Conditional and DAB-DETR; `layers` are [L, B, Q, ...]."""
    yield "", last
    if config.auxiliary_loss:
        earlier = zip(layers["logits"][:-1], layers["pred_boxes"][:-1], strict=True)
        yield from ((f"_{i}", {"logits": logits, "pred_boxes": boxes}) for i, (logits, boxes) in enumerate(earlier))


def _class_parts(loss: nn.Module, outputs: Outputs, targets: Labels, indices: Indices) -> dict[str, Tensor]:
    """The loss of the classes of one set of predictions, whose matched queries are the positives."""
    logits = outputs["logits"]
    labels = torch.full(logits.shape[:2], logits.shape[-1], device=logits.device)
    found = outputs["pred_boxes"].detach()
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    iou = found.new_zeros(logits.shape[:2])
    for image, (target, (queries, objects)) in enumerate(zip(targets, indices, strict=True)):
        labels[image, queries] = target["class_labels"][objects]
        pair = found[image, queries], target["boxes"][objects].to(found.dtype)
        iou[image, queries] = box_iou(*(center_to_corners_format(boxes) for boxes in pair))
    if isinstance(loss, _OF_SCORES):
        return {"loss_class": loss(logits, labels)}
    if isinstance(loss, RankSortLoss):
        return {f"loss_{name}": part for name, part in loss(logits, labels, iou)._asdict().items()}
    return {"loss_class": loss(logits, labels, iou)}

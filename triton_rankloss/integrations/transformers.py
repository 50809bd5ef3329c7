"""Hugging Face's RT-DETR, RT-DETRv2, D-FINE and Deformable DETR trained with a ranking loss for the classes.

    model = RTDetrForObjectDetection(config)
    use_loss(model, rankloss.RankSortLoss())
    model(pixel_values=images, labels=labels).loss.backward()  # as before, and so in Trainer

The losses of boxes are those of the library, with the weights of the model's config, and so is matching, for which the
scores of a ranking are given a level. Every set of predictions (each decoder layer, the denoising queries of each
layer) is ranked by itself, over all images of the batch; the encoder's keeps the library's loss. Needs transformers,
scipy and pillow, which the extra ``transformers`` brings.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

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
_RANKING = (*_OF_SCORES, RankSortLoss)
_OF_SCORES_AND_IOU = (RankSortLoss, IoUBalancedFocalLoss, IoUBalancedBCELoss)

Labels = list[dict[str, Tensor]]  # per image: "class_labels" [n] and "boxes" [n, 4], centre and size in fractions
Indices = list[tuple[Tensor, Tensor]]  # per image: queries, and the objects that they are matched with
Outputs = dict[str, Tensor]  # "logits" [B, Q, C], "pred_boxes" [B, Q, 4] and D-FINE's own, of one set of predictions


class Set(NamedTuple):
    """One set of predictions."""

    suffix: str  # of the names of its losses
    kind: Literal["layer", "encoder", "denoising"]
    outputs: Outputs


def use_loss(model: PreTrainedModel, loss: nn.Module) -> PreTrainedModel:
    """Give a detector another classification loss.

    With a ranking (AP, Rank & Sort, DR) the matcher sees the scores at a level at which the highest of an image is 1/2.
    The encoder of RT-DETR and D-FINE, whose scores choose the queries among all positions, keeps the library's loss.

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
    make_sets: Callable[..., Iterator[Set]] = _deformable_sets if deformable else _rt_detr_sets

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
        for suffix, kind, outputs in sets:
            # The encoder's are the tokens that score highest: ranking them would say nothing of the tokens left out.
            as_before = kind == "encoder" and isinstance(loss, _RANKING)
            if kind == "denoising":
                indices, normalizer = RTDetrLoss.get_cdn_matched_indices(denoising, labels), num_noisy
            else:
                to_match = outputs if as_before else _to_match(loss, outputs)
                indices, normalizer = criterion.matcher(to_match, labels), num_objects
            of_boxes = criterion.loss_boxes(outputs, labels, indices, normalizer)
            if isinstance(criterion, DFineLoss):
                of_boxes |= criterion.loss_local(outputs, labels, indices, normalizer)
            if as_before:
                of_classes = criterion.loss_labels_vfl(outputs, labels, indices, normalizer)
            else:
                of_classes = _class_parts(loss, outputs, labels, indices)
            parts |= {name + suffix: weights[name] * part for name, part in of_boxes.items()}
            parts |= {name + suffix: weights.get("loss_vfl", 1.0) * part for name, part in of_classes.items()}
        earlier = [outputs for _, kind, outputs in sets[1:] if kind != "denoising"]
        return torch.stack(list(parts.values())).sum(), parts, earlier if config.auxiliary_loss else None

    return loss_function


def _to_match(loss: nn.Module, outputs: Outputs) -> Outputs:
    """`outputs` with the scores that the matcher is to see: those of a ranking so that the highest of an image is 1/2.

    The cost of a class, (1 - p)^2 (-log p) / 4 - 3/4 p^2 (-log(1 - p)), falls by 1.2 from p = 0.01 to 1/2, and then
    faster: by 3.3 to 0.99. A ranking leaves the level of the scores open. Where p is high, this cost outweighs
    those of the boxes; the queries that score highest are the positives, and the ranking has nothing left to learn.
    """
    if not isinstance(loss, _RANKING):
        return outputs
    logits = outputs["logits"]
    return {**outputs, "logits": logits - logits.amax((1, 2), keepdim=True)}


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
) -> Iterator[Set]:  # fmt: skip
    """Every set of predictions of RT-DETR or D-FINE; `layers` are [B, L, Q, ...]."""
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
    yield Set("", "layer", last)
    if config.auxiliary_loss:
        earlier = _unstack(layers, slice(-1))
        yield from (Set(f"_aux_{i}", "layer", outputs) for i, outputs in enumerate(earlier))
        yield Set(f"_aux_{len(earlier)}", "encoder", encoder)
    if config.auxiliary_loss and noisy is not None:
        yield from (Set(f"_dn_{i}", "denoising", outputs) for i, outputs in enumerate(_unstack(noisy, slice(None))))


def _unstack(layers: Outputs, chosen: slice) -> list[Outputs]:
    """The outputs of each of these layers; those of D-FINE are taught by the last one's."""
    # D-FINE has logits and boxes before its first layer; the library pairs them with the corners of that layer too.
    columns = zip(*(stack.unbind(1)[chosen] for stack in layers.values()), strict=False)
    unstacked = [dict(zip(layers, column, strict=True)) for column in columns]
    if "pred_corners" not in layers:
        return unstacked
    teacher = {"teacher_corners": layers["pred_corners"][:, -1], "teacher_logits": layers["logits"][:, -1]}
    return [outputs | teacher for outputs in unstacked]


def _deformable_sets(config: Any, last: Outputs, layers: Outputs, *_: Any) -> Iterator[Set]:
    """The same of Deformable, Conditional and DAB-DETR; `layers` are [L, B, Q, ...]."""
    yield Set("", "layer", last)
    if config.auxiliary_loss:
        earlier = zip(layers["logits"][:-1], layers["pred_boxes"][:-1], strict=True)
        for i, (logits, boxes) in enumerate(earlier):
            yield Set(f"_{i}", "layer", {"logits": logits, "pred_boxes": boxes})


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

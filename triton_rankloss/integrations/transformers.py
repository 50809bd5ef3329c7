"""Hugging Face's RT-DETR and RT-DETRv2 trained with a ranking loss in place of varifocal loss.

    model = RTDetrForObjectDetection(config)
    use_loss(model, rankloss.RankSortLoss())
    model(pixel_values=images, labels=labels).loss.backward()  # as before, and so in Trainer

Matching and box losses stay those of the model, with the weights of its config. Every set of predictions (each decoder
layer, the encoder's, the denoising queries of each layer) is ranked by itself, over all images of the batch.
Needs transformers, scipy and pillow, which ``pip install triton-rankloss[transformers]`` brings.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher, RTDetrLoss

from .. import (
    APLoss,
    DRLoss,
    IoUBalancedBCELoss,
    IoUBalancedFocalLoss,
    RankSortLoss,
    generalized_box_iou_loss,
)
from ..boxes import box_iou

MODEL_TYPES = ("rt_detr", "rt_detr_v2")
_OF_SCORES = (APLoss, DRLoss)
_OF_SCORES_AND_IOU = (RankSortLoss, IoUBalancedFocalLoss, IoUBalancedBCELoss)

Indices = list[tuple[Tensor, Tensor]]  # per image: queries, and the objects that they are matched with


def use_loss(model: PreTrainedModel, loss: nn.Module) -> PreTrainedModel:
    """Give an RT-DETR another classification loss.

    Args:
        model: an `RTDetrForObjectDetection` or `RTDetrV2ForObjectDetection`; its `loss_function` is set.
        loss: `APLoss`, `RankSortLoss`, `DRLoss`, `IoUBalancedFocalLoss` or `IoUBalancedBCELoss`.

    Returns:
        `model`.

    Raises:
        TypeError: another kind of model or loss.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if model_type not in MODEL_TYPES:
        raise TypeError(f"model must be an RT-DETR ({' or '.join(MODEL_TYPES)}); got {model_type}")
    model.loss_function = detection_loss(loss)
    return model


def detection_loss(loss: nn.Module) -> Callable[..., tuple[Tensor, dict[str, Tensor], Any]]:
    """A function for the `loss_function` of a model, which takes functions alone: a module set there is ignored."""
    if not isinstance(loss, (*_OF_SCORES, *_OF_SCORES_AND_IOU)):
        names = ", ".join(kind.__name__ for kind in (*_OF_SCORES, *_OF_SCORES_AND_IOU))
        raise TypeError(f"loss must be one of {names}; got {type(loss).__name__}")

    def loss_function(
        logits: Tensor,
        labels: list[dict[str, Tensor]],
        device: torch.device,
        pred_boxes: Tensor,
        config: Any,
        outputs_class: Tensor,
        outputs_coord: Tensor,
        enc_topk_logits: Tensor | None = None,
        enc_topk_bboxes: Tensor | None = None,
        denoising_meta_values: dict[str, Any] | None = None,
        **_: Any,
    ) -> tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]] | None]:
        """(loss, its weighted parts, the predictions of the earlier layers if they have losses)."""
        matcher = RTDetrHungarianMatcher(config)
        num_objects = max(1, sum(len(target["class_labels"]) for target in labels))
        sets = list(_sets(outputs_class, outputs_coord, enc_topk_logits, enc_topk_bboxes, denoising_meta_values))
        parts: dict[str, Tensor] = {}
        for name, set_logits, set_boxes in sets if config.auxiliary_loss else sets[:1]:
            if "_dn_" in name:
                assert denoising_meta_values is not None
                indices = RTDetrLoss.get_cdn_matched_indices(denoising_meta_values, labels)
                normalizer = num_objects * denoising_meta_values["dn_num_group"]
            else:
                indices = matcher({"logits": set_logits, "pred_boxes": set_boxes}, labels)
                normalizer = num_objects
            found = _set_loss(loss, set_logits, set_boxes, labels, indices, normalizer, config)
            parts |= {part + name: value for part, value in found.items()}
        earlier = [{"logits": logits, "pred_boxes": boxes} for name, logits, boxes in sets if "_aux_" in name]
        return torch.stack(list(parts.values())).sum(), parts, earlier if config.auxiliary_loss else None

    return loss_function


def _sets(
    logits: Tensor, boxes: Tensor, encoder_logits: Tensor | None, encoder_boxes: Tensor | None, denoising: Any
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(suffix of its name, logits [B, Q, C], boxes [B, Q, 4]) of every set, the last layer's first."""
    if denoising is not None:
        noisy_logits, logits = logits.split(denoising["dn_num_split"], dim=2)
        noisy_boxes, boxes = boxes.split(denoising["dn_num_split"], dim=2)
    last = logits.shape[1] - 1
    yield "", logits[:, last], boxes[:, last]
    for layer in range(last):
        yield f"_aux_{layer}", logits[:, layer], boxes[:, layer]
    if encoder_logits is not None and encoder_boxes is not None:
        yield f"_aux_{last}", encoder_logits, encoder_boxes
    if denoising is not None:
        for layer in range(last + 1):
            yield f"_dn_{layer}", noisy_logits[:, layer], noisy_boxes[:, layer]


def _set_loss(
    loss: nn.Module, logits: Tensor, boxes: Tensor, targets: list[dict[str, Tensor]], indices: Indices,
    num_objects: int, config: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """The weighted parts of the loss of one set of predictions, whose matched queries are the positives."""
    labels = torch.full(logits.shape[:2], logits.shape[-1], device=logits.device)
    found, wanted = [], []
    for image, (target, (queries, objects)) in enumerate(zip(targets, indices, strict=True)):
        # In row-major order of the positives, as the losses expect what is given per positive.
        order = queries.argsort()
        queries, objects = queries[order].to(logits.device), objects[order].to(logits.device)
        labels[image, queries] = target["class_labels"][objects]
        found.append(boxes[image, queries])
        wanted.append(target["boxes"][objects])
    found_boxes, wanted_boxes = torch.cat(found).float(), torch.cat(wanted).float()
    corners = _corners(found_boxes), _corners(wanted_boxes)
    giou = generalized_box_iou_loss(*corners, reduction="sum")
    return {
        **_class_parts(loss, logits, labels, *corners),
        "loss_bbox": config.weight_loss_bbox * (found_boxes - wanted_boxes).abs().sum() / num_objects,
        "loss_giou": config.weight_loss_giou * giou / num_objects,
    }


def _class_parts(
    loss: nn.Module, logits: Tensor, labels: Tensor, found_boxes: Tensor, wanted_boxes: Tensor
) -> dict[str, Tensor]:
    if isinstance(loss, _OF_SCORES):
        return {"loss_class": loss(logits, labels)}
    with torch.no_grad():
        iou = box_iou(found_boxes, wanted_boxes)
    if isinstance(loss, RankSortLoss):
        ranking, sorting = loss(logits, labels, iou)
        return {"loss_ranking": ranking, "loss_sorting": sorting}
    return {"loss_class": loss(logits, labels, iou)}


def _corners(boxes: Tensor) -> Tensor:
    """(x1, y1, x2, y2) of boxes (centre, size)."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat((centre - half, centre + half), dim=1)

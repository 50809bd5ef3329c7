"""Harmonic loss of a whole detection head as PyTorch operators.

The localization losses of the positives are one operator, on [P]; the other reads the logits and puts both together.
"""

from typing import Any

import torch
from torch import Tensor

from ..reference import harmonic_detection as reference
from ..reference.targets import result_dtype
from ..reference.terms import widest_dtype
from .dispatch import register_launcher
from .gradient import contiguous_like, once_differentiable, save


@torch.library.custom_op("triton_rankloss::harmonic_localization_loss", mutates_args=())
def localization_loss(
    pred_boxes: Tensor, target_boxes: Tensor, pred_deltas: Tensor | None, target_deltas: Tensor | None, beta: float,
    iou_weight: float, gamma: float, eps: float,
) -> Tensor:  # fmt: skip
    """smooth_l1(deltas) + iou_weight harmonic_iou(boxes) of boxes [P, 4] and deltas [P, D]: [P]."""
    return reference.localization_forward(
        pred_boxes, target_boxes, pred_deltas, target_deltas, beta, iou_weight, gamma, eps
    )


@localization_loss.register_fake
def _(
    pred_boxes: Tensor, target_boxes: Tensor, pred_deltas: Tensor | None, target_deltas: Tensor | None, beta: float,
    iou_weight: float, gamma: float, eps: float,
) -> Tensor:  # fmt: skip
    dtype = widest_dtype(pred_boxes, target_boxes, pred_deltas, target_deltas)
    return pred_boxes.new_empty(pred_boxes.shape[:-1], dtype=dtype)


@torch.library.custom_op("triton_rankloss::harmonic_localization_loss_backward", mutates_args=())
def localization_loss_backward(
    pred_boxes: Tensor, target_boxes: Tensor, pred_deltas: Tensor | None, target_deltas: Tensor | None,
    upstream: Tensor, beta: float, iou_weight: float, gamma: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of `pred_boxes` and of `pred_deltas`, the second empty without deltas; targets get none."""
    return reference.localization_backward(
        pred_boxes, target_boxes, pred_deltas, target_deltas, upstream, beta, iou_weight, gamma, eps
    )


@localization_loss_backward.register_fake
def _(
    pred_boxes: Tensor, target_boxes: Tensor, pred_deltas: Tensor | None, target_deltas: Tensor | None,
    upstream: Tensor, beta: float, iou_weight: float, gamma: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    of_deltas = pred_boxes.new_empty(0) if pred_deltas is None else contiguous_like(pred_deltas)
    return contiguous_like(pred_boxes), of_deltas


def _localization_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save(ctx, inputs[:4], inputs[4:])


def _localization_backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 8
    of_boxes, of_deltas = localization_loss_backward(*ctx.saved_tensors, upstream, *ctx.parameters)
    return of_boxes, None, of_deltas if ctx.needs_input_grad[2] else None, *[None] * 5


@torch.library.custom_op("triton_rankloss::harmonic_detection_loss", mutates_args=())
def detection_loss(
    logits: Tensor, targets: Tensor, positions: Tensor, localization: Tensor, activation: str, background: int,
    negative_weight: float, positive_weight: float, gamma: float, detach_factors: bool, avg_number: float | None,
    avg_tensor: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(loss, scale [], weights [2, P]), from the localization losses [P] of the positives.

    The activation is "sigmoid", of focal terms with class weights, or "softmax", which reads `background` alone.
    scale = 1 / avg_factor; weights: scale times the derivatives of the harmonic loss of each positive in its
    classification loss and in its localization loss.
    """
    reference.check_localization(localization, positions)
    avg_factor = avg_number if avg_tensor is None else avg_tensor
    weights = (negative_weight, positive_weight)
    return reference.detection_forward(
        logits, targets, positions, localization, activation, background, weights, gamma, detach_factors, avg_factor
    )


@detection_loss.register_fake
def _(
    logits: Tensor, targets: Tensor, positions: Tensor, localization: Tensor, activation: str, background: int,
    negative_weight: float, positive_weight: float, gamma: float, detach_factors: bool, avg_number: float | None,
    avg_tensor: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    scalar = logits.new_empty((), dtype=result_dtype(logits))
    return scalar, torch.empty_like(scalar), scalar.new_empty((2, localization.shape[0]))


@torch.library.custom_op("triton_rankloss::harmonic_detection_loss_backward", mutates_args=())
def detection_loss_backward(
    logits: Tensor, targets: Tensor, positions: Tensor, scale: Tensor, of_positives: Tensor, upstream: Tensor,
    activation: str, background: int, negative_weight: float, positive_weight: float, gamma: float,
) -> Tensor:  # fmt: skip
    """Gradient of the logits; `of_positives` [P] are the weights of the positives' classification losses."""
    weights = (negative_weight, positive_weight)
    return reference.detection_backward(
        logits, targets, positions, scale, of_positives, upstream, activation, background, weights, gamma
    )


@detection_loss_backward.register_fake
def _(
    logits: Tensor, targets: Tensor, positions: Tensor, scale: Tensor, of_positives: Tensor, upstream: Tensor,
    activation: str, background: int, negative_weight: float, positive_weight: float, gamma: float,
) -> Tensor:  # fmt: skip
    return contiguous_like(logits)


def _detection_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, positions, localization, *parameters = inputs
    save(ctx, (logits, targets, positions, *output[1:]), parameters[:5])
    ctx.mark_non_differentiable(*output[1:])
    ctx.localization_dtype = localization.dtype


def _detection_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    of_logits = of_localization = None
    if upstream is not None:
        logits, targets, positions, scale, weights = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            of_logits = detection_loss_backward(
                logits, targets, positions, scale, weights[0], upstream, *ctx.parameters
            )
        if ctx.needs_input_grad[3]:
            of_localization = (weights[1] * upstream).to(ctx.localization_dtype)
    return of_logits, None, None, of_localization, *[None] * 8


register_launcher(localization_loss, "harmonic", "localization_loss")
register_launcher(localization_loss_backward, "harmonic", "localization_loss_backward")
localization_loss.register_autograd(_localization_backward, setup_context=_localization_context)
register_launcher(detection_loss, "harmonic_detection", "forward")
register_launcher(detection_loss_backward, "harmonic_detection", "backward")
detection_loss.register_autograd(_detection_backward, setup_context=_detection_context)
once_differentiable(localization_loss_backward)
once_differentiable(detection_loss_backward)

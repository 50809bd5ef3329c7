"""Harmonic loss and task-contrastive loss as PyTorch operators."""

from typing import Any

import torch
from torch import Tensor

from ..reference import harmonic as reference
from ..reference.targets import check_per_positive
from ..reference.terms import widest_dtype
from ..targets import positive_positions as positive_positions
from .dispatch import register_launcher
from .gradient import contiguous_like, once_differentiable, save


@torch.library.custom_op("triton_rankloss::harmonic_loss", mutates_args=())
def harmonic_loss(classification: Tensor, localization: Tensor, detach_factors: bool) -> Tensor:
    """(1 + exp(-l)) c + (1 + exp(-c)) l, of the shape of both."""
    return reference.harmonic_forward(classification, localization, detach_factors)


@harmonic_loss.register_fake
def _(classification: Tensor, localization: Tensor, detach_factors: bool) -> Tensor:
    return classification.new_empty(classification.shape, dtype=widest_dtype(classification, localization))


@torch.library.custom_op("triton_rankloss::harmonic_loss_backward", mutates_args=())
def harmonic_loss_backward(
    classification: Tensor, localization: Tensor, upstream: Tensor, detach_factors: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of both."""
    return reference.harmonic_backward(classification, localization, upstream, detach_factors)


@harmonic_loss_backward.register_fake
def _(classification: Tensor, localization: Tensor, upstream: Tensor, detach_factors: bool) -> tuple[Tensor, Tensor]:
    return contiguous_like(classification), contiguous_like(localization)


def _harmonic_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, detach_factors = inputs
    save(ctx, tensors, (detach_factors,))


def _harmonic_backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return None, None, None
    return *harmonic_loss_backward(*ctx.saved_tensors, upstream, *ctx.parameters), None


@torch.library.custom_op("triton_rankloss::task_contrastive_loss", mutates_args=())
def task_contrastive_loss(logits: Tensor, positions: Tensor, iou: Tensor, margin: float, activation: str) -> Tensor:
    """Losses [P] of the positives, with their IoU [P]; the activation is "sigmoid" or "softmax"."""
    check_per_positive(iou, positions, "iou")
    return reference.task_contrastive_forward(logits, positions, iou, margin, activation)


@task_contrastive_loss.register_fake
def _(logits: Tensor, positions: Tensor, iou: Tensor, margin: float, activation: str) -> Tensor:
    return iou.new_empty(iou.shape, dtype=widest_dtype(logits, iou))


@torch.library.custom_op("triton_rankloss::task_contrastive_loss_backward", mutates_args=())
def task_contrastive_loss_backward(
    logits: Tensor, positions: Tensor, iou: Tensor, upstream: Tensor, margin: float, activation: str
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits and of the IoU."""
    return reference.task_contrastive_backward(logits, positions, iou, upstream, margin, activation)


@task_contrastive_loss_backward.register_fake
def _(
    logits: Tensor, positions: Tensor, iou: Tensor, upstream: Tensor, margin: float, activation: str
) -> tuple[Tensor, Tensor]:
    return contiguous_like(logits), contiguous_like(iou)


def _task_contrastive_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save(ctx, inputs[:3], inputs[3:])


def _task_contrastive_backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 5
    of_logits, of_iou = task_contrastive_loss_backward(*ctx.saved_tensors, upstream, *ctx.parameters)
    return of_logits, None, of_iou, None, None


register_launcher(harmonic_loss, "harmonic", "harmonic_loss")
register_launcher(harmonic_loss_backward, "harmonic", "harmonic_loss_backward")
harmonic_loss.register_autograd(_harmonic_backward, setup_context=_harmonic_context)
register_launcher(task_contrastive_loss, "task_contrastive", "forward")
register_launcher(task_contrastive_loss_backward, "task_contrastive", "backward")
task_contrastive_loss.register_autograd(_task_contrastive_backward, setup_context=_task_contrastive_context)
once_differentiable(harmonic_loss_backward)
once_differentiable(task_contrastive_loss_backward)

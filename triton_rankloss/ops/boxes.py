"""Box losses as PyTorch operators: one for all kinds, one value per pair of boxes."""

from typing import Any

import torch
from torch import Tensor

from ..reference import boxes as reference
from ..reference.terms import widest_dtype
from .dispatch import register_launcher
from .gradient import contiguous_like, once_differentiable, save


@torch.library.custom_op("triton_rankloss::box_loss", mutates_args=())
def box_loss(boxes1: Tensor, boxes2: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Losses [...] of boxes [..., 4] in pairs; kind is iou, giou, diou, ciou or harmonic (which alone uses gamma)."""
    return reference.box_loss_forward(boxes1, boxes2, kind, gamma, eps)


@box_loss.register_fake
def _(boxes1: Tensor, boxes2: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    return boxes1.new_empty(boxes1.shape[:-1], dtype=widest_dtype(boxes1, boxes2))


@torch.library.custom_op("triton_rankloss::box_loss_backward", mutates_args=())
def box_loss_backward(boxes1: Tensor, boxes2: Tensor, upstream: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Gradient of `boxes1`. The losses are symmetric: exchange the boxes for that of `boxes2`."""
    return reference.box_loss_backward(boxes1, boxes2, upstream, kind, gamma, eps)


@box_loss_backward.register_fake
def _(boxes1: Tensor, boxes2: Tensor, upstream: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    return contiguous_like(boxes1)


once_differentiable(box_loss_backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save(ctx, inputs[:2], inputs[2:])


def _backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient1 = gradient2 = None
    if upstream is not None:
        boxes1, boxes2 = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            gradient1 = box_loss_backward(boxes1, boxes2, upstream, *ctx.parameters)
        if ctx.needs_input_grad[1]:
            gradient2 = box_loss_backward(boxes2, boxes1, upstream, *ctx.parameters)
    return gradient1, gradient2, None, None, None


register_launcher(box_loss, "boxes", "box_loss")
register_launcher(box_loss_backward, "boxes", "box_loss_backward")
box_loss.register_autograd(_backward, setup_context=_setup_context)

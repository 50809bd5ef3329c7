"""DR Loss as a PyTorch operator."""

from typing import Any

import torch
from torch import Tensor

from ..reference import dr as reference, targets as reference_targets
from .dispatch import register_launcher
from .gradient import contiguous_like, once_differentiable, save


@torch.library.custom_op("triton_rankloss::dr_loss", mutates_args=())
def dr_loss(
    logits: Tensor, targets: Tensor, margin: float, pos_lambda: float, neg_lambda: float, L: float, tau: float,
    per_image: bool, group: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, state [2, 3, S]): of positives and negatives, (coefficient, shift, mean) of each of the S scopes.

    With k = -1 / pos_lambda for positives and 1 / neg_lambda for negatives, and p the sigmoid of the logit x,
    d loss / dx = coefficient exp(k (p - shift)) (1 + k (p - mean)) p (1 - p).
    """
    return reference.dr_forward(logits, targets, margin, pos_lambda, neg_lambda, L, tau, per_image, group)


@dr_loss.register_fake
def _(
    logits: Tensor, targets: Tensor, margin: float, pos_lambda: float, neg_lambda: float, L: float, tau: float,
    per_image: bool, group: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    dtype = reference_targets.result_dtype(logits)
    num_scopes = logits.shape[0] if per_image else 1
    return logits.new_empty((), dtype=dtype), logits.new_empty((2, 3, num_scopes), dtype=dtype)


@torch.library.custom_op("triton_rankloss::dr_loss_backward", mutates_args=())
def dr_loss_backward(
    logits: Tensor, targets: Tensor, state: Tensor, upstream: Tensor, pos_lambda: float, neg_lambda: float
) -> Tensor:
    """Gradient of the logits, from `state` and the upstream gradient; S > 1: one scope for each logits[s]."""
    return reference.dr_backward(logits, targets, state, upstream, pos_lambda, neg_lambda)


@dr_loss_backward.register_fake
def _(logits: Tensor, targets: Tensor, state: Tensor, upstream: Tensor, pos_lambda: float, neg_lambda: float) -> Tensor:
    return contiguous_like(logits)


register_launcher(dr_loss, "dr", "forward")
register_launcher(dr_loss_backward, "dr", "backward")
once_differentiable(dr_loss_backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, _, pos_lambda, neg_lambda, *_ = inputs
    save(ctx, (logits, targets, output[1]), (pos_lambda, neg_lambda))
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    gradient = None
    if upstream is not None and ctx.needs_input_grad[0]:
        gradient = dr_loss_backward(*ctx.saved_tensors, upstream, *ctx.parameters)
    return gradient, *[None] * 8


dr_loss.register_autograd(_backward, setup_context=_setup_context)

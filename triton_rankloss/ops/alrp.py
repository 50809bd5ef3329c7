"""aLRP Loss as a PyTorch operator."""

from typing import Any

import torch
from torch import Tensor

from ..reference import alrp, targets as reference_targets
from ..reference.scopes import pad_to_bound
from .dispatch import register_launcher
from .ranking import fake_state, logits_gradient, save_for_backward


@torch.library.custom_op("triton_rankloss::alrp_loss", mutates_args=())
def alrp_loss(
    logits: Tensor,
    targets: Tensor,
    localization_errors: Tensor,
    delta: float,
    eps: float,
    per_image: bool,
    max_positives: int | None,
    group: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(classification, localization, positions, scores, weights, updates [1, P], offsets, gradient of the errors).

    The last has the shape of `localization_errors`.
    """
    r, gradient = alrp.forward(logits, targets, localization_errors, delta, eps, per_image, group)
    r = pad_to_bound(r, max_positives)
    return r.losses[0].clone(), r.losses[1].clone(), r.positions, r.scores, r.weights, r.updates, r.offsets, gradient


@alrp_loss.register_fake
def _(
    logits: Tensor,
    targets: Tensor,
    localization_errors: Tensor,
    delta: float,
    eps: float,
    per_image: bool,
    max_positives: int | None,
    group: str | None,
) -> tuple[Tensor, ...]:
    dtype = reference_targets.result_dtype(logits)
    state = fake_state(logits, 1, per_image, max_positives)
    loss = logits.new_empty((), dtype=dtype)
    return loss, torch.empty_like(loss), *state, torch.empty_like(localization_errors, dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, errors, delta, *_ = inputs
    save_for_backward(ctx, logits, targets, output[2:], delta)
    ctx.errors_dtype = errors.dtype


def _backward(
    ctx: Any, classification: Tensor | None, localization: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    errors = None
    if localization is not None and ctx.needs_input_grad[2]:
        errors = (ctx.saved_tensors[-1] * localization).to(ctx.errors_dtype)
    return logits_gradient(ctx, classification), None, errors, None, None, None, None, None


register_launcher(alrp_loss, "alrp", "forward")
alrp_loss.register_autograd(_backward, setup_context=_setup_context)

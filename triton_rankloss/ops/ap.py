"""AP Loss as a PyTorch operator."""

from typing import Any

import torch
from torch import Tensor

from ..reference import ap, targets as reference_targets
from ..reference.scopes import pad_to_bound
from .dispatch import register_launcher
from .ranking import fake_state, logits_gradient, save_for_backward


@torch.library.custom_op("triton_rankloss::ap_loss", mutates_args=())
def ap_loss(
    logits: Tensor,
    targets: Tensor,
    delta: float,
    interpolate: bool,
    per_image: bool,
    max_positives: int | None,
    group: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, positions, scores, weights, updates [1, P], offsets)."""
    r = pad_to_bound(
        ap.forward(logits, targets, delta, interpolate, per_image, group), max_positives if group is None else None
    )
    return r.losses[0].clone(), r.positions, r.scores, r.weights, r.updates, r.offsets


@ap_loss.register_fake
def _(
    logits: Tensor,
    targets: Tensor,
    delta: float,
    interpolate: bool,
    per_image: bool,
    max_positives: int | None,
    group: str | None,
) -> tuple[Tensor, ...]:
    loss = logits.new_empty((), dtype=reference_targets.result_dtype(logits))
    return loss, *fake_state(logits, 1, per_image, max_positives)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, delta, *_ = inputs
    save_for_backward(ctx, logits, targets, output[1:], delta)


def _backward(ctx: Any, loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return logits_gradient(ctx, loss), None, None, None, None, None, None


register_launcher(ap_loss, "ap", "forward")
ap_loss.register_autograd(_backward, setup_context=_setup_context)

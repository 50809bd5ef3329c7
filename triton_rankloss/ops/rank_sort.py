"""Rank & Sort Loss as a PyTorch operator."""

from typing import Any

import torch
from torch import Tensor

from ..reference import rank_sort, targets as reference_targets
from ..reference.scopes import pad_to_bound
from .dispatch import register_launcher
from .ranking import fake_state, logits_gradient, save_for_backward


@torch.library.custom_op("triton_rankloss::rank_sort_loss", mutates_args=())
def rank_sort_loss(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor | None,
    delta: float,
    eps: float,
    per_image: bool,
    max_positives: int | None,
    group: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(ranking, sorting, positions, scores, weights, updates [2, P], offsets)."""
    r = pad_to_bound(
        rank_sort.forward(logits, targets, iou, delta, eps, per_image, group), max_positives if group is None else None
    )
    return r.losses[0].clone(), r.losses[1].clone(), r.positions, r.scores, r.weights, r.updates, r.offsets


@rank_sort_loss.register_fake
def _(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor | None,
    delta: float,
    eps: float,
    per_image: bool,
    max_positives: int | None,
    group: str | None,
) -> tuple[Tensor, ...]:
    loss = logits.new_empty((), dtype=reference_targets.result_dtype(logits))
    return loss, torch.empty_like(loss), *fake_state(logits, 2, per_image, max_positives)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, _, delta, *_ = inputs
    save_for_backward(ctx, logits, targets, output[2:], delta)


def _backward(ctx: Any, ranking: Tensor | None, sorting: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return logits_gradient(ctx, ranking, sorting), None, None, None, None, None, None, None


register_launcher(rank_sort_loss, "rank_sort", "forward")
rank_sort_loss.register_autograd(_backward, setup_context=_setup_context)

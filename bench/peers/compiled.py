"""torch.compile of the vectorized form, and of this package's own reference.

The matrix is written whole: the compiler fuses it into the sum over it, so it never exists and needs no blocks.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from triton_rankloss.reference import ap, ranking

from . import vectorized
from .common import step


@cache
def compiled(function: Callable) -> Callable:
    """`function` compiled once, for every size."""
    return torch.compile(function, dynamic=True)


def count(positives: Tensor, negatives: Tensor, delta: float) -> Tensor:
    """sum_j H(n_j - p_i), [P]."""
    return step(negatives[None, :] - positives[:, None], delta).sum(1)


def transport(positives: Tensor, negatives: Tensor, weights: Tensor, delta: float) -> Tensor:
    """sum_i w_i H(n_j - p_i), [N]."""
    return (weights[:, None] * step(negatives[None, :] - positives[:, None], delta)).sum(0)


class Fused:
    """The products with the matrix, each one compiled loop."""

    def count(self, positives: Tensor, negatives: Tensor, delta: float) -> Tensor:
        return compiled(count)(positives, negatives, delta)

    def transport(self, positives: Tensor, negatives: Tensor, weights: Tensor, delta: float) -> Tensor:
        return compiled(transport)(positives, negatives, weights, delta)


FUSED = Fused()


def ap_loss(logits: Tensor, targets: Tensor, delta: float = 1.0) -> Tensor:
    """AP Loss, interpolated; `targets` dense."""
    return vectorized.ap_loss(logits, targets, delta, matrix=FUSED)


def alrp_loss(
    logits: Tensor, targets: Tensor, errors: Tensor, delta: float = 1.0, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(classification, localization) of aLRP Loss; `targets` dense, `errors` [P]."""
    return vectorized.alrp_loss(logits, targets, errors, delta, eps, matrix=FUSED)


def rank_sort_loss(logits: Tensor, targets: Tensor, delta: float = 0.5, eps: float = 1e-10) -> tuple[Tensor, Tensor]:
    """(ranking, sorting) of Rank & Sort Loss; `targets` dense, with the IoU of the positives."""
    return vectorized.rank_sort_loss(logits, targets, delta, eps, matrix=FUSED)


class CompiledReference(torch.autograd.Function):
    """The reference of AP Loss, its forward and its backward compiled as far as the compiler gets."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, delta: float) -> Tensor:
        losses, *state = compiled(ap.forward)(logits, targets, delta, True, False)
        ctx.save_for_backward(logits, targets, *state)
        ctx.delta = delta
        return losses[0].clone()

    @staticmethod
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, *state = ctx.saved_tensors
        transport = compiled(ranking.transport_to_logits)
        return transport(logits, targets, upstream.reshape(1), *state, ctx.delta), None, None


def reference_ap_loss(logits: Tensor, targets: Tensor, delta: float = 1.0) -> Tensor:
    """AP Loss, interpolated, of the compiled reference."""
    return CompiledReference.apply(logits, targets, delta)

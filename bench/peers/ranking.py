"""What the peers of the ranking losses share: their candidates, the step H, and an update kept until backward.

A formula takes float32 scores (float64 for float64 logits) of the positives [P] and of the negatives that matter [N],
values [P] of the positives where the loss has any, and delta; it returns the losses, the update of the positives, and
that of the negatives.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Update = tuple[Sequence[Tensor], Tensor, Tensor]
Formula = Callable[..., Update]


def step_(x: Tensor, delta: float) -> Tensor:
    """H(x), in place."""
    return x.ge_(0) if delta == 0 else x.div_(2 * delta).add_(0.5).clamp_(0, 1)


def wide(logits: Tensor) -> Tensor:
    """Logits in the dtype to compute in."""
    return logits if logits.dtype == torch.float64 else logits.float()


def ranking_loss(formula: Formula, logits: Tensor, targets: Tensor, values: Sequence[Tensor], delta: float) -> Tensor:
    """Sum of the losses of `formula`; dense `targets`: > 0 positive, 0 negative, below 0 ignored."""
    with torch.no_grad():
        scores, targets = wide(logits).reshape(-1), targets.reshape(-1)
        at_positives = (targets > 0).nonzero().squeeze(1)
        positives = scores[at_positives]
        # A negative that scores below min(p) - delta moves nothing.
        at_negatives = ((targets == 0) & (scores >= positives.min() - delta)).nonzero().squeeze(1)
        losses, update, carried = formula(positives, scores[at_negatives], *(x.to(scores) for x in values), delta)
        gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        gradient.view(-1)[at_positives] = update.to(gradient.dtype)
        gradient.view(-1)[at_negatives] = carried.to(gradient.dtype)
    return StoredUpdate.apply(logits, gradient, sum(losses))


class StoredUpdate(torch.autograd.Function):
    """A loss whose update is made in forward and kept, as large as the logits, until backward: the published way."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, gradient: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return ctx.saved_tensors[0] * upstream, None, None


def localization(positives: Tensor, errors: Tensor, rank: Tensor) -> Tensor:
    """aLRP's localization part: errors from the best score down, over the rank reached there; ties as they come."""
    down = positives.argsort().flip(0)
    return (errors[down].cumsum(0) / rank[down]).mean()

"""What the ranking peers share: the candidates, the step H, and an update that forward stores for backward."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Update = tuple[tuple[Tensor, ...], Tensor, Tensor]  # losses, update of the positives [P], of the negatives [N]


class Candidates(NamedTuple):
    """Flat positions and float32 scores (float64 for float64 logits) of the candidates that matter."""

    positive_positions: Tensor  # [P]
    negative_positions: Tensor  # [N] of the negatives that score at least min(p) - delta: all others move nothing
    positives: Tensor  # [P]
    negatives: Tensor  # [N]


def candidates(logits: Tensor, targets: Tensor, delta: float) -> Candidates:
    """Candidates of `logits` under dense `targets`: > 0 positive, 0 negative, below 0 ignored."""
    scores = logits.detach().reshape(-1)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    targets = targets.reshape(-1)
    positive_positions = (targets > 0).nonzero().squeeze(1)
    positives = scores[positive_positions]
    negative_positions = ((targets == 0) & (scores >= positives.min() - delta)).nonzero().squeeze(1)
    return Candidates(positive_positions, negative_positions, positives, scores[negative_positions])


def step_(x: Tensor, delta: float) -> Tensor:
    """H(x), in place."""
    if delta == 0:
        return x.ge_(0)
    return x.div_(2 * delta).add_(0.5).clamp_(0, 1)


def step(x: Tensor, delta: float) -> Tensor:
    """H(x)."""
    if delta == 0:
        return (x >= 0).to(x.dtype)
    return (x / (2 * delta) + 0.5).clamp(0, 1)


class StoredUpdate(torch.autograd.Function):
    """Losses whose update is made in forward and kept, as large as the logits, until backward: the published way.

    The update is scaled by the upstream gradient of the first loss, which must be that of all that move the logits.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, c: Candidates, update: Update) -> tuple[Tensor, ...]:
        losses, of_positives, of_negatives = update
        gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        gradient.view(-1)[c.positive_positions] = of_positives.to(gradient.dtype)
        gradient.view(-1)[c.negative_positions] = of_negatives.to(gradient.dtype)
        ctx.save_for_backward(gradient)
        return tuple(losses)

    @staticmethod
    def backward(ctx, upstream: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None


def with_update(logits: Tensor, c: Candidates, make: Callable[..., Update], *args: object) -> tuple[Tensor, ...]:
    """Losses of `make(c.positives, c.negatives, *args)`, connected to `logits`."""
    with torch.no_grad():
        update = make(c.positives, c.negatives, *args)
    return StoredUpdate.apply(logits, c, update)


def localization(errors: Tensor, order: Tensor, rank: Tensor) -> Tensor:
    """aLRP's localization part: the errors of the positives from the best score down, over the rank reached there.

    `order` sorts the positives by score, ascending. Equal scores are taken in the order in which the sort left them.
    """
    down = order.flip(0)
    return (errors[down].cumsum(0) / rank[down]).mean()

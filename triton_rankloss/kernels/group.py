"""What a process group adds between the kernels; the steps, and the reasons, are those of reference.scopes.

Positives are gathered before count, counts are summed over the ranks before anything is made of them. Without a group
every function here hands its argument back.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import distributed
from .targets import Positives


class Ranks(NamedTuple):
    """The ranks that take part in a call."""

    group: str
    sizes: list[int]  # number of positives on each
    shared: bool  # whether they share one scope; else every image is a scope of its own


def join(
    group: str | None, positives: Positives, loss: str, logits: Tensor, per_image: bool, **arguments: float
) -> tuple[Positives, Ranks | None]:
    """Agree on the call; the positives of all ranks, if they share one scope."""
    if group is None:
        return positives, None
    arguments = {"per_image": per_image, **arguments}
    sizes = distributed.agree(loss, arguments, logits, positives.scores.numel(), group)
    if per_image:
        return positives, Ranks(group, sizes, shared=False)
    scores = distributed.gather(positives.scores.unsqueeze(0), sizes, group)[0].contiguous()
    positions = distributed.own_positions(positives.positions, sizes, group)
    offsets = torch.tensor([0, sum(sizes)], device=scores.device)
    return Positives(positions, scores, offsets), Ranks(group, sizes, shared=True)


def values_of_all(values: Tensor, ranks: Ranks | None) -> Tensor:
    """Values of the positives of all ranks that share the scope."""
    if ranks is None or not ranks.shared:
        return values.contiguous()
    return distributed.gather(values.unsqueeze(0), ranks.sizes, ranks.group)[0].contiguous()


def counts_of_all(above: Tensor, ranks: Ranks | None) -> Tensor:
    """b_i, over the negatives of all ranks that share the scope."""
    if ranks is None or not ranks.shared:
        return above
    return distributed.total(above, ranks.group)


def finish(losses: list[Tensor], gradients: list[Tensor], offsets: Tensor, ranks: Ranks | None) -> list[Tensor]:
    """Losses of the group; scales the parts of the gradient, in place, to those whose mean over the ranks is exact."""
    if ranks is None:
        return losses
    factor: Tensor | float = 1.0
    if not ranks.shared:
        own_ranked = (offsets.diff() > 0).sum().to(losses[0].dtype)
        factor = own_ranked / distributed.total(own_ranked, ranks.group).clamp(min=1)
        losses = [distributed.total(loss * factor, ranks.group) for loss in losses]
    for gradient in gradients:
        gradient *= factor * len(ranks.sizes)
    return losses


def own(values: Tensor, ranks: Ranks | None) -> Tensor:
    """The values of this rank's positives among those of all."""
    if ranks is None or not ranks.shared:
        return values
    return values[distributed.own_slice(ranks.sizes, ranks.group)].clone()

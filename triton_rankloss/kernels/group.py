"""What a process group adds between the kernels; the steps, and the reasons, are those of reference.scopes.

Of a ranking loss positives are gathered before count, and counts are summed over the ranks before anything is made of
them; without a group these functions hand their argument back. Of DR Loss the sums of every rank are gathered.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import distributed
from ..reference.dr import Sums, added
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
    sizes = distributed.agree(loss, {"per_image": per_image, **arguments}, logits, positives.scores.numel(), group)
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


def tilted_sums_of_all(partial: Tensor, k: tuple[float, float], group: str) -> Tensor:
    """The sums [2, 3, 1, world size] of every rank, in float64, from the partial sums [2, 3, 1, R] of this one."""
    if partial.shape[3] == 0:
        # Nothing, at the shifts that weigh least: p = 1 of positives and 0 of negatives, less 1/2.
        own = partial.new_tensor([0.5, 0, 0, -0.5, 0, 0], dtype=torch.float64)
    else:
        kinds = zip(partial.double(), k, strict=True)
        own = torch.cat([torch.cat(added(Sums(*of_kind[:, 0]), k_of_kind)) for of_kind, k_of_kind in kinds])
    sizes = [1] * distributed.world_size(group)
    everyone = distributed.gather(own.unsqueeze(1), sizes, group)
    return everyone.reshape(2, 3, 1, len(sizes))


def mean_over_images_of_all(loss: Tensor, state: Tensor, partial: Tensor, group: str) -> tuple[Tensor, Tensor]:
    """(loss, state) of DR Loss over the images, on all ranks, that have a candidate, from those over this rank's."""
    own_ranked = (partial[:, 1].sum(-1) != 0).any(0).sum().to(loss.dtype)
    total, num_ranked = distributed.total(torch.stack([loss * own_ranked, own_ranked]), group)
    num_ranked = num_ranked.clamp(min=1)
    state[:, 0] *= own_ranked / num_ranked * distributed.world_size(group)
    return total / num_ranked, state

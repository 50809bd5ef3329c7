"""What a process group adds to DR Loss: the sums of every rank are gathered."""

import torch
from torch import Tensor

from ... import distributed


def gather_sums(partial: Tensor, k: tuple[float, float], group: str) -> Tensor:
    """The sums [2, 3, 1, world size] of every rank, in float64, from the partial sums [2, 3, 1, R] of this one."""
    if partial.shape[3] == 0:
        # Nothing, at the shifts that weigh least: p = 1 of positives and 0 of negatives, less 1/2.
        own = partial.new_tensor([0.5, 0, 0, -0.5, 0, 0], dtype=torch.float64)
    else:
        kinds = zip(partial.double(), k, strict=True)
        own = torch.cat([_add(part[0, 0], part[1, 0], part[2, 0], k_of_part) for part, k_of_part in kinds])
    sizes = [1] * distributed.world_size(group)
    everyone = distributed.gather(own.unsqueeze(1), sizes, group)
    return everyone.reshape(2, 3, 1, len(sizes))


def _add(shifts: Tensor, totals: Tensor, weighted: Tensor, k: float) -> Tensor:
    """(shift, sum of w, sum of w c), [3], from those of its parts, [R] each: w = exp(k (c - shift)) at one shift."""
    shift = shifts.max() if k > 0 else shifts.min()
    w = (k * (shifts - shift)).exp()
    return torch.stack([shift, (w * totals).sum(), (w * weighted).sum()])


def mean_over_images(loss: Tensor, state: Tensor, partial: Tensor, group: str) -> tuple[Tensor, Tensor]:
    """(loss, state) of DR Loss over the images, on all ranks, that have a candidate, from those over this rank's."""
    own_ranked = (partial[:, 1].sum(-1) != 0).any(0).sum().to(loss.dtype)
    total, num_ranked = distributed.total(torch.stack([loss * own_ranked, own_ranked]), group)
    num_ranked = num_ranked.clamp(min=1)
    state[:, 0] *= own_ranked / num_ranked * distributed.world_size(group)
    return total / num_ranked, state

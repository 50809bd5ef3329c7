"""Collectives of the ranking losses over a process group: positives travel, and one number for each; logits never do.

`group` is the name of a torch.distributed process group. Positives of all ranks are numbered rank by rank, so a group
sees what one process would see in the concatenated batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

LOSSES = ("ap_loss", "alrp_loss", "rank_sort_loss")


def resolve(group: str) -> Any:
    """The process group of that name."""
    name: Any = group  # newer releases of torch have a type of their own for names
    return _resolve_process_group(name)


def world_size(group: str) -> int:
    """Number of ranks."""
    return dist.get_world_size(resolve(group))


def agree(loss: str, arguments: dict[str, float], logits: Tensor, num_positives: int, group: str) -> list[int]:
    """Number of positives of every rank; a ValueError on every rank if one was called with other arguments.

    This is the first collective of every ranking loss, and the same for all of them, so that it cannot hang.
    """
    arguments = {"the loss": LOSSES.index(loss), "the precision of logits": torch.finfo(logits.dtype).eps, **arguments}
    own = torch.tensor([num_positives, *arguments.values()], dtype=torch.float64, device=logits.device)
    everyone = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(everyone, own, group=resolve(group))
    rows = torch.stack(everyone).tolist()
    for column, name in enumerate(arguments, start=1):
        given = [row[column] for row in rows]
        if any(value != given[0] for value in given):
            raise ValueError(f"{name} must be the same on every rank of group; got {given}, in the order of ranks")
    return [int(row[0]) for row in rows]


def gather(values: Tensor, sizes: list[int], group: str) -> Tensor:
    """Values [K, P_r] of every rank r side by side, [K, sum of sizes]."""
    longest = max(sizes)
    padded = values.new_zeros(values.shape[0], longest)
    padded[:, : values.shape[1]] = values
    everyone = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(everyone, padded, group=resolve(group))
    return torch.cat([part[:, :size] for part, size in zip(everyone, sizes, strict=True)], dim=1)


def total(values: Tensor, group: str) -> Tensor:
    """Sum over the ranks."""
    values = values.clone()
    dist.all_reduce(values, group=resolve(group))
    return values


def own_slice(sizes: list[int], group: str) -> slice:
    """Where the positives of this rank are among those of all."""
    rank = dist.get_rank(resolve(group))
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def own_positions(positions: Tensor, sizes: list[int], group: str) -> Tensor:
    """Positions of all positives: those of this rank as they are, -1 for those in the logits of others."""
    everywhere = positions.new_full((sum(sizes),), -1)
    everywhere[own_slice(sizes, group)] = positions
    return everywhere

"""Collectives of the losses over a process group: sums travel, or positives and one number for each; logits never do.

`group` is the name of a torch.distributed process group. Positives of all ranks are numbered rank by rank, so a group
sees what one process would see in the concatenated batch.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

LOSSES = (
    "ap_loss",
    "alrp_loss",
    "rank_sort_loss",
    "dr_loss",
    "iou_balanced_focal_loss",
    "iou_balanced_bce_loss",
    "iou_balanced_cross_entropy_loss",
    "iou_balanced_smooth_l1_loss",
)
MAX_ARGUMENTS = 6  # those of dr_loss, which has most


def resolve(group: str) -> Any:
    """The process group of that name."""
    name: Any = group  # newer releases of torch have a type of their own for names
    return _resolve_process_group(name)


def world_size(group: str) -> int:
    """Number of ranks."""
    return dist.get_world_size(resolve(group))


def agree(
    loss: str, arguments: Mapping[str, float | Tensor | None], like: Tensor, num_positives: int, group: str
) -> list[int]:
    """Number of positives of every rank; a ValueError on every rank if one was called with other arguments.

    This is the first collective of every loss, and of the same length for all of them, so that it cannot hang. `like`
    is what the loss is made of; an argument may be a tensor without dimensions on its device, or None.
    """
    arguments = {"the loss": LOSSES.index(loss), "the precision": torch.finfo(like.dtype).eps, **arguments}
    numbers = [math.nan if value is None or isinstance(value, Tensor) else value for value in arguments.values()]
    row = [num_positives, *numbers, *[math.nan] * (MAX_ARGUMENTS + 2 - len(numbers))]
    own = torch.tensor(row, dtype=torch.float64, device=like.device)
    for column, value in enumerate(arguments.values(), start=1):
        if isinstance(value, Tensor):
            own[column] = value
    everyone = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(everyone, own, group=resolve(group))
    rows = torch.stack(everyone).tolist()
    for column, name in enumerate(arguments, start=1):
        given: list[Any] = [None if math.isnan(row[column]) else row[column] for row in rows]
        if name == "the loss":
            given = [LOSSES[int(index)] for index in given]
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

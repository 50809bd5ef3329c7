"""What a process group adds to a count or a sum: sums travel, or positives and one number for each; logits never do.

`group` is the name of a torch.distributed process group. Positives of all ranks are numbered rank by rank, so a group
sees what one process would see in the concatenated batch. Every rank gets the loss of the group; gradients are
multiplied by the number of ranks, so that their mean, which data-parallel training takes, is the gradient of that loss.
"""

import math
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

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
FAILED = -1  # in place of a rank's number of positives: it has no call to agree on

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class RanksDisagreeError(ValueError):
    """Raised on every rank by the first collective of a call, which no rank is then waiting for."""


def fail_together(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate what checks the arguments of a loss with a `group`: where it fails on one rank, it fails on all.

    The rank that fails takes part in the first collective of the call before it raises; the others learn of it there.
    So every check of arguments, in an operator too, comes before that collective.
    """

    @wraps(function)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        group: Any = kwargs.get("group")
        if group is None:
            return function(*args, **kwargs)
        try:
            return function(*args, **kwargs)
        except RanksDisagreeError:
            raise
        except (TypeError, ValueError):
            if isinstance(group, dist.ProcessGroup):
                types = [device.type for device in group._device_types]  # those that the group can send from
                tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
                devices = [tensor.device for tensor in tensors if tensor.device.type in types]
                devices.append(torch.device("cpu" if "cpu" in types else types[0]))
                _exchange([FAILED], devices[0], group)
            raise

    return checked


class Ranks(NamedTuple):
    """The ranks that rank their candidates together; without a group this process alone."""

    group: str | None = None
    sizes: tuple[int, ...] = ()  # number of positives on each
    shared: bool = False  # whether they share one scope; else every image is a scope of its own

    def gather_values(self, values: Tensor) -> Tensor:
        """Values [P] of the positives of all ranks that share the scope, from those of this rank."""
        if self.group is None or not self.shared:
            return values.contiguous()
        return gather(values.unsqueeze(0), self.sizes, self.group)[0].contiguous()

    def gather_positions(self, positions: Tensor) -> Tensor:
        """Positions of the same positives: those of this rank as they are, -1 for those in the logits of others."""
        if self.group is None or not self.shared:
            return positions
        everywhere = positions.new_full((sum(self.sizes),), -1)
        everywhere[self._own()] = positions
        return everywhere

    def own_values(self, values: Tensor) -> Tensor:
        """Of values of the positives of all ranks those of this rank: the opposite of `gather_values`."""
        return values[self._own()].clone() if self.shared else values

    def total_count(self, above: Tensor) -> Tensor:
        """b_i over the negatives of all ranks that share the scope, from those of this rank."""
        return above if self.group is None or not self.shared else total(above, self.group)

    def mean_over_scopes(self, losses: list[Tensor], gradients: list[Tensor], offsets: Tensor) -> list[Tensor]:
        """Losses of the group, from means over this rank's scopes; scales the gradients, in place, to match them."""
        if self.group is None:
            return losses
        factor: Tensor | float = 1.0
        if not self.shared:
            own_ranked = (offsets.diff() > 0).sum().to(losses[0].dtype)
            factor = own_ranked / total(own_ranked, self.group).clamp(min=1)
            losses = [total(loss * factor, self.group) for loss in losses]
        for gradient in gradients:
            gradient *= factor * len(self.sizes)
        return losses

    def _own(self) -> slice:
        rank = dist.get_rank(resolve(self.group or ""))
        return slice(sum(self.sizes[:rank]), sum(self.sizes[: rank + 1]))


def join_ranks(
    group: str | None, loss: str, arguments: Mapping[str, float], like: Tensor, num_positives: int, per_image: bool
) -> Ranks:
    """The ranks of a ranking loss, after they have agreed on the call."""
    if group is None:
        return Ranks()
    sizes = check_same_call(loss, {"per_image": per_image, **arguments}, like, num_positives, group)
    return Ranks(group, tuple(sizes), shared=not per_image)


def check_same_call(
    loss: str, arguments: Mapping[str, float | Tensor | None], like: Tensor, num_positives: int, group: str
) -> list[int]:
    """Number of positives of every rank; a ValueError on all if one failed or was called otherwise.

    This is the first collective of every loss, and of the same length for all of them, so that it cannot hang. `like`
    is what the loss is made of; an argument may be a tensor without dimensions on its device, or None.
    """
    arguments = {"the loss": LOSSES.index(loss), "the precision": torch.finfo(like.dtype).eps, **arguments}
    numbers = [math.nan if value is None or isinstance(value, Tensor) else value for value in arguments.values()]
    tensors = {column: value for column, value in enumerate(arguments.values(), 1) if isinstance(value, Tensor)}
    rows = _exchange([num_positives, *numbers], like.device, resolve(group), tensors)
    failed = [rank for rank, row in enumerate(rows) if row[0] == FAILED]
    if failed:
        raise RanksDisagreeError(f"rank {', '.join(map(str, failed))} of group failed its argument check, and says why")
    for column, name in enumerate(arguments, start=1):
        given: list[Any] = [None if math.isnan(row[column]) else row[column] for row in rows]
        if name == "the loss":
            given = [LOSSES[int(index)] for index in given]
        if any(value != given[0] for value in given):
            raise RanksDisagreeError(
                f"{name} must be the same on every rank of group; got {given}, in the order of ranks"
            )
    return [int(row[0]) for row in rows]


def _exchange(
    numbers: list[float], device: torch.device, group: Any, tensors: Mapping[int, Tensor] | None = None
) -> list[list[float]]:
    """The numbers of every rank; in place of some stand `tensors` without dimensions, by column."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("with group= a loss waits for the host, which a CUDA graph cannot capture: call it outside")
    row = [*numbers, *[math.nan] * (MAX_ARGUMENTS + 3 - len(numbers))]
    own = torch.tensor(row, dtype=torch.float64, device=device)
    for column, value in (tensors or {}).items():
        own[column] = value
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    return torch.stack(everyone).tolist()


def resolve(group: str) -> Any:
    """The process group of that name."""
    name: Any = group  # newer releases of torch have a type of their own for names
    return _resolve_process_group(name)


def world_size(group: str) -> int:
    """Number of ranks."""
    return dist.get_world_size(resolve(group))


def gather(values: Tensor, sizes: tuple[int, ...] | list[int], group: str) -> Tensor:
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

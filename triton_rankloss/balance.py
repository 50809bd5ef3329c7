"""What the IoU-balanced losses share: the balance of their sums, over the ranks of a group, and what divides them."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import dispatch, distributed
from .dtypes import accumulation_dtype, result_dtype
from .reference import iou_balanced as reference


def balance(
    sums: Tensor, count: int | Tensor, avg_number: float | None, avg_tensor: Tensor | None, group: str | None
) -> tuple[Tensor, Tensor]:
    """(loss, scale [2]) of `reference.sum_terms` of this rank; `count` is what avg_factor is without an argument.

    `scale` is the derivative of the loss in sum_j l_j, and in sum_i u_i^eta l_i.
    """
    sums = torch.stack([*sums, torch.as_tensor(count, dtype=sums.dtype, device=sums.device)])
    if group is not None:
        sums = distributed.total(sums, group)
    formula = partial(reference.balance, avg_factor=divisor(avg_number, avg_tensor, sums[3]))
    loss = formula(sums[:3])
    (scale,) = dispatch.gradients(formula, [sums[:3]], torch.ones_like(loss))
    if group is not None:
        scale *= distributed.world_size(group)
    return loss, torch.stack([scale[0], scale[2]])


def divisor(avg_number: float | None, avg_tensor: Tensor | None, default: Tensor) -> Tensor:
    """What a sum is divided by: the tensor or the number that was given, or without both `default`, at least 1."""
    if avg_tensor is not None:
        return avg_tensor.to(default.dtype, copy=True)
    return default.clamp(min=1) if avg_number is None else torch.full_like(default, avg_number)


def fake_loss_and_scale(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    """Metadata of (loss, scale [2])."""
    return logits.new_empty((), dtype=result_dtype(logits)), logits.new_empty(2, dtype=accumulation_dtype(logits))

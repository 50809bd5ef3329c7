"""The logits as positives and negatives, for losses that take every logit once and need no order among them.

Positives are few, and taken from their positions; negatives are nearly everything, and come in blocks with a mask.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .blocks import blocks
from .targets import check_per_positive, negative_mask, result_dtype


def finite(logits: Tensor) -> Tensor:
    """`logits` in the dtype of the result; infinite ones count as large finite ones, which cost much but not NaN."""
    limit = min(torch.finfo(logits.dtype).max, 1e30)
    return logits.to(result_dtype(logits)).clamp(-limit, limit)


def positives(logits: Tensor, positions: Tensor) -> Tensor:
    """Finite logits [P] at flat `positions`."""
    return finite(logits.reshape(-1)[positions])


def negatives(logits: Tensor, targets: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(flat start, finite logits [M], mask of the negatives [M]) of each block; `targets` of either form."""
    for start, block, block_targets in blocks(logits, targets):
        yield start, finite(block).reshape(-1), negative_mask(block, block_targets).reshape(-1)


def at_positives(values: Tensor, logits: Tensor, positions: Tensor) -> Tensor:
    """`values` of the shape of the logits, or per anchor, of the positives [P] at flat `positions`."""
    return values.reshape(-1)[positions if values.shape == logits.shape else positions // logits.shape[-1]]


def spread(values: Tensor, is_positive: Tensor, name: str) -> Tensor:
    """`values` [P], given for the positives in row-major order, put where they are; 0 elsewhere."""
    positions = is_positive.reshape(-1).nonzero().squeeze(1)
    check_per_positive(values, positions, name)
    return values.new_zeros(is_positive.numel()).index_put((positions,), values).view(is_positive.shape)

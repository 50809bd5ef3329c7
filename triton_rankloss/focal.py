"""Focal loss over all candidates on the reference path: block by block, so that no tensor of their size is made."""

import torch
from torch import Tensor

from . import dispatch
from .dtypes import accumulation_dtype
from .reference.focal import focal, focal_of_negatives
from .targets import certain_negatives, in_blocks, select


def sum_of_negatives(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """sum_j focal(-x_j)."""
    of_blocks = [
        focal_of_negatives(certain_negatives(*block), gamma).sum(dtype=accumulation_dtype(logits))
        for block in in_blocks(logits, targets)
    ]
    return torch.stack(of_blocks).sum()


def focal_gradient(
    logits: Tensor, targets: Tensor, positions: Tensor, of_negatives: Tensor, of_positives: Tensor, gamma: float
) -> Tensor:
    """Gradient of the logits, from that of each negative's focal(-x), [], and of each positive's focal(x), [P]."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for (grad_block, _), block in zip(in_blocks(gradient, targets), in_blocks(logits, targets), strict=True):
        negatives = certain_negatives(*block)
        (slopes,) = dispatch.gradients(lambda x: focal_of_negatives(x, gamma).sum(), [negatives], of_negatives)
        grad_block.copy_(slopes)
    (slopes,) = dispatch.gradients(lambda x: focal(x, gamma), [select(logits, positions)], of_positives)
    gradient.view(-1).scatter_(0, positions, slopes.to(gradient.dtype))
    return gradient

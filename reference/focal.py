"""Sigmoid focal loss, and as its case gamma = 0 binary cross-entropy, of every logit by itself."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .candidates import negatives, positives
from .targets import accumulation_dtype


def focal(score: Tensor, gamma: float) -> Tensor:
    """sigmoid(-s)^gamma softplus(-s): the focal loss of a positive with logit s, of a negative with logit -s."""
    missing = torch.sigmoid(-score) + torch.finfo(score.dtype).tiny  # at 0 a power below 1 has no finite derivative
    return missing.pow(gamma) * -logsigmoid(score)


def focal_slope(score: Tensor, gamma: float) -> Tensor:
    """Derivative of `focal` in s: -sigmoid(-s)^gamma (gamma sigmoid(s) softplus(-s) + sigmoid(-s))."""
    missing = torch.sigmoid(-score)
    return missing.pow(gamma) * (gamma * torch.sigmoid(score) * logsigmoid(score) - missing)


def sum_of_negatives(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Sum of `focal` over the negatives."""
    parts = [
        torch.where(mask, focal(-scores, gamma), 0).sum(dtype=accumulation_dtype(logits))
        for _, scores, mask in negatives(logits, targets)
    ]
    return torch.stack(parts).sum()


def at_positives(logits: Tensor, positions: Tensor, gamma: float) -> Tensor:
    """`focal` of the positives [P] at flat `positions`."""
    return focal(positives(logits, positions), gamma)


def gradient(
    logits: Tensor, targets: Tensor, positions: Tensor, of_negatives: Tensor, of_positives: Tensor, gamma: float
) -> Tensor:
    """Gradient of the logits, in their dtype, from that of every negative's `focal`, [], and every positive's, [P]."""
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    flat = result.view(-1)
    for start, scores, mask in negatives(logits, targets):
        slopes = -of_negatives * focal_slope(-scores, gamma)
        flat[start : start + scores.numel()] = torch.where(mask, slopes, 0)
    of_positives = of_positives * focal_slope(positives(logits, positions), gamma)
    flat[positions] = of_positives.to(result.dtype)
    return result

"""The logits as positives and negatives, for losses that take every logit once and need no order among them.

Masks, not positions: nothing that a loss does with them has a data-dependent shape or waits for the device.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .targets import are_labels, check_per_positive


class Candidates(NamedTuple):
    """Which logits count; the others are ignored. Both bool, of the shape of the logits."""

    is_negative: Tensor
    is_positive: Tensor


def candidates(logits: Tensor, targets: Tensor) -> Candidates:
    """`logits` [..., C] under `targets` of either form."""
    if not are_labels(logits, targets):
        return Candidates(targets == 0, targets > 0)
    is_positive = is_labelled(logits, targets)
    return Candidates((targets >= 0).unsqueeze(-1) & ~is_positive, is_positive)


def is_labelled(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether a channel is the one that the label names, bool [..., C]."""
    return labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)


def at_label(logits: Tensor, labels: Tensor) -> Tensor:
    """The logit that the label names, [..., 1]; for a label that names none, some logit."""
    return logits.gather(-1, labels.long().clamp(0, logits.shape[-1] - 1).unsqueeze(-1))


def spread(values: Tensor, is_positive: Tensor, name: str) -> Tensor:
    """`values` [P], given for the positives in row-major order, put where they are; 0 elsewhere."""
    positions = is_positive.reshape(-1).nonzero().squeeze(1)
    check_per_positive(values, positions, name)
    return values.new_zeros(is_positive.numel()).index_put((positions,), values).view(is_positive.shape)


def per_candidate(values: Tensor, logits: Tensor) -> Tensor:
    """`values` of the shape of the logits, or per anchor: so that they broadcast against the logits."""
    return values if values.shape == logits.shape else values.unsqueeze(-1)

"""The logits as positives and negatives, for losses that take every logit once and need no order among them.

With labels, an anchor has one channel at most that can be positive: `Candidates.scores` gathers that channel, [..., 1].
With dense targets every logit can be, and `scores` are the logits. Nothing here has a data-dependent shape.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .targets import are_labels, check_per_positive


class Candidates(NamedTuple):
    """Which logits are negatives, and the scores that may be positives."""

    is_negative: Tensor  # bool [..., C]
    scores: Tensor  # [..., 1] for labels, [..., C] for dense targets
    is_positive: Tensor  # bool, of the shape of scores


def candidates(logits: Tensor, targets: Tensor) -> Candidates:
    """`logits` [..., C] under `targets` of either form."""
    if not are_labels(logits, targets):
        return Candidates(targets == 0, logits, targets > 0)
    if logits.shape[-1] == 0:
        return Candidates(logits > 0, logits, logits > 0)
    labels = targets.unsqueeze(-1)
    is_negative = (labels >= 0) & ~is_labelled(logits, targets)
    return Candidates(is_negative, at_label(logits, targets), (labels >= 0) & (labels < logits.shape[-1]))


def gradient_of_logits(logits: Tensor, targets: Tensor, of_negatives: Tensor, of_scores: Tensor) -> Tensor:
    """The gradient of `logits`, in their dtype, from those of negatives and of `scores`, 0 where these do not count."""
    if are_labels(logits, targets):
        gradient = torch.where(is_labelled(logits, targets), of_scores, of_negatives)
    else:
        gradient = of_negatives + of_scores
    return gradient.to(logits.dtype).contiguous()


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


def beside(values: Tensor, scores: Tensor) -> Tensor:
    """`values` given per anchor, so that they broadcast against `scores` [..., C]; others as they are."""
    return values if values.shape == scores.shape else values.unsqueeze(-1)

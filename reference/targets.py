"""Targets in their two forms, and what they say of each logit: positive, negative or ignored.

Dense targets have the shape of the logits: > 0 positive, 0 negative, anything else (-1, NaN) ignored.
Labels are integers of shape logits.shape[:-1]: 0..C-1 is the positive channel of an anchor whose other channels are
negative, C (and above) is background, below 0 the whole anchor is ignored. No one-hot tensor is ever made of them.
"""

import torch
from torch import Tensor


def are_labels(logits: Tensor, targets: Tensor) -> bool:
    """Whether `targets` are labels, [...], rather than dense targets, [..., C], of `logits` [..., C]."""
    return targets.shape != logits.shape


def positive_positions(logits: Tensor, targets: Tensor) -> Tensor:
    """Flat, row-major positions of the positive logits, int64 [P]."""
    if not are_labels(logits, targets):
        return (targets.reshape(-1) > 0).nonzero().squeeze(1)
    num_classes = logits.shape[-1]
    labels = targets.reshape(-1).long()
    anchors = ((labels >= 0) & (labels < num_classes)).nonzero().squeeze(1)
    return anchors * num_classes + labels[anchors]


def negative_mask(logits: Tensor, targets: Tensor) -> Tensor:
    """Which logits are negatives, bool of the shape of `logits`."""
    if not are_labels(logits, targets):
        return ~targets.bool()  # targets == 0, in a tenth of the time on a CPU
    mask = (targets >= 0).unsqueeze(-1).expand_as(logits).contiguous()
    mask.view(-1)[positive_positions(logits, targets)] = False
    return mask


def per_positive(values: Tensor, logits: Tensor, positions: Tensor, name: str) -> Tensor:
    """Values of the positives [P] in row-major order, from values that are given per positive or per anchor.

    Values of shape logits.shape[:-1] (for logits [N]: of shape [N]) are per anchor, all others must be [P].
    """
    if is_per_anchor(values, logits):
        return values.reshape(-1)[positions // (logits.shape[-1] if logits.dim() > 1 else 1)]
    return check_per_positive(values, positions, name)


def is_per_anchor(values: Tensor, logits: Tensor) -> bool:
    """Whether `values` hold one value for each anchor."""
    return values.shape == (logits.shape[:-1] if logits.dim() > 1 else logits.shape)


def check_per_positive(values: Tensor, positions: Tensor, name: str) -> Tensor:
    """`values`, if there is one for each of the positives `positions` [P]."""
    if values.shape != positions.shape:
        raise ValueError(
            f"{name} must hold one value for each of the {positions.numel()} positives, "
            f"shape ({positions.numel()},); got shape {tuple(values.shape)}"
        )
    return values


def accumulation_dtype(logits: Tensor) -> torch.dtype:
    """Float64, except on devices that lack it."""
    return torch.float32 if logits.device.type == "mps" else torch.float64


def result_dtype(logits: Tensor) -> torch.dtype:
    """Dtype of losses and of the state kept for backward: float32, or float64 for float64 logits."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32

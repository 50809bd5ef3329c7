"""Targets in their two forms, and what they say of each logit: positive, negative or ignored.

Dense targets have the shape of the logits: > 0 positive, 0 negative, anything else (-1, NaN) ignored.
Labels are integers of shape logits.shape[:-1]: 0..C-1 is the positive channel of an anchor whose other channels are
negative, C (and above) is background, below 0 the whole anchor is ignored. No one-hot tensor is ever made of them.
Softmax labels are integers too, the channel of each sample: one channel is the background, below 0 is ignored.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .dtypes import clamp_infinities

BLOCK = 2**18  # logits at a time on a CPU: what autograd keeps of them stays in its caches
BACKGROUND_BLOCK = 512  # logits for which the kernels note whether they are background
CERTAIN = 1e30  # a logit whose probability is exactly 1, and that of -CERTAIN 0


def are_labels(logits: Tensor, targets: Tensor) -> bool:
    """Whether `targets` are labels, [...], rather than dense targets, [..., C], of `logits` [..., C]."""
    return targets.shape != logits.shape


def as_anchors(logits: Tensor, targets: Tensor, *per_anchor: Tensor) -> tuple[Tensor, ...]:
    """The arguments of a loss, labels in a dtype that holds every channel; those of one anchor alone as [1, C] and [1].

    To an int8 label, the channel 200 would be -56.
    """
    if not are_labels(logits, targets):
        return logits, targets, *per_anchor
    if targets.dtype not in (torch.int32, torch.int64):
        targets = targets.long()
    if targets.dim() > 0:
        return logits, targets, *per_anchor
    return logits.unsqueeze(0), targets.unsqueeze(0), *[v if v.dim() > 0 else v.unsqueeze(0) for v in per_anchor]


@torch.library.custom_op("triton_rankloss::positive_positions", mutates_args=())
def positive_positions(logits: Tensor, targets: Tensor, background: int | None) -> Tensor:
    """Flat, row-major positions of the positive logits, int64 [P]; with a `background`, targets are softmax labels."""
    if background is not None:
        return _softmax_positions(logits, targets, background)
    if not are_labels(logits, targets):
        return (targets.reshape(-1) > 0).nonzero().squeeze(1)
    num_classes = logits.shape[-1]
    labels = targets.reshape(-1).long()
    anchors = ((labels >= 0) & (labels < num_classes)).nonzero().squeeze(1)
    return anchors * num_classes + labels[anchors]


@positive_positions.register_fake
def _(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.long)


@dispatch.kernel(positive_positions)
def _(logits: Tensor, targets: Tensor, background: int | None) -> Tensor:
    if background is not None:  # few, and listed by torch
        return _softmax_positions(logits, targets, background)
    from .kernels import listing

    return listing.positive_positions(logits, targets)


def _softmax_positions(logits: Tensor, labels: Tensor, background: int) -> Tensor:
    num_channels = logits.shape[-1]
    samples = softmax_classes(logits, labels, background)[1].reshape(-1).nonzero().squeeze(1)
    return samples * num_channels + labels.reshape(-1)[samples].long().clamp(max=num_channels - 1)


def softmax_classes(logits: Tensor, labels: Tensor, background: int) -> tuple[Tensor, Tensor]:
    """(is background, is positive), bool [...]; labels below 0 are neither."""
    background = background % logits.shape[-1]
    return labels == background, (labels >= 0) & (labels != background)


def softmax_rows(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [M, K], channels [M]) of all samples, infinite logits as large finite ones.

    The logits of ignored samples are 0, whatever was there; those of a label that names no channel are NaN.
    """
    num_channels, labels = logits.shape[-1], labels.reshape(-1)
    rows = clamp_infinities(logits.reshape(-1, num_channels))
    rows.index_fill_(0, (labels < 0).nonzero().squeeze(1), 0)
    rows.index_fill_(0, (labels >= num_channels).nonzero().squeeze(1), torch.nan)
    return rows, labels.long().clamp(0, num_channels - 1)


def negative_mask(logits: Tensor, targets: Tensor) -> Tensor:
    """Which logits are negatives, bool of the shape of `logits`."""
    if not are_labels(logits, targets):
        return ~targets.bool()  # targets == 0, in a tenth of the time on a CPU
    mask = (targets >= 0).unsqueeze(-1).expand_as(logits).contiguous()  # no comparison of every channel
    mask.view(-1)[positive_positions(logits, targets, None)] = False
    return mask


def negative_positions(logits: Tensor, targets: Tensor) -> Tensor:
    """Flat positions of the negative logits, int64 [N]."""
    return negative_mask(logits, targets).reshape(-1).nonzero().squeeze(1)


def select(logits: Tensor, positions: Tensor) -> Tensor:
    """Logits [M] at flat `positions`, infinite ones as large finite ones, in the dtype of the result."""
    return clamp_infinities(logits.reshape(-1).index_select(0, positions))


def in_blocks(logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits, targets) in blocks: flat, or with labels rows of logits. Blocks of a contiguous tensor are views."""
    num_columns = logits.shape[-1] if are_labels(logits, targets) else 1
    num_rows = max(1, BLOCK // max(1, num_columns))
    shape = (targets.numel(), num_columns) if are_labels(logits, targets) else (-1,)
    return zip(logits.contiguous().view(shape).split(num_rows), targets.reshape(-1).split(num_rows), strict=True)


def certain_negatives(logits: Tensor, targets: Tensor) -> Tensor:
    """As from `select` the logits of a block, with all that are no negatives as certain ones: p and its slope are 0.

    Nearly all logits are negatives, and picking them would take a CPU as long as the loss itself.
    """
    return fill_others(clamp_infinities(logits), targets, -CERTAIN)


def fill_others(values: Tensor, targets: Tensor, value: float) -> Tensor:
    """Write `value` over the values, of the shape of the logits of a block, of all that are no negatives."""
    if not are_labels(values, targets):
        return values.masked_fill_(targets.bool(), value)  # targets != 0, in a tenth of the time
    positives = ((targets >= 0) & (targets < values.shape[-1])).nonzero().squeeze(1)
    values[positives, targets[positives].long()] = value
    return values.index_fill_(0, (targets < 0).nonzero().squeeze(1), value)


def are_negative(logits: Tensor, targets: Tensor, positions: Tensor) -> Tensor:
    """Which of the logits at flat `positions` are negatives, bool: `negative_mask` where only a few are asked for."""
    if not are_labels(logits, targets):
        return targets.reshape(-1)[positions] == 0
    anchors = positions // logits.shape[-1]
    labels = targets.reshape(-1)[anchors]
    return (labels >= 0) & (labels != positions - anchors * logits.shape[-1])


def is_per_anchor(values: Tensor, logits: Tensor) -> bool:
    """Whether `values` hold one value for each anchor: shape logits.shape[:-1], for logits [N] shape [N]."""
    return values.shape == (logits.shape[:-1] if logits.dim() > 1 else logits.shape)


def values_at_positives(values: Tensor, logits: Tensor, positions: Tensor, name: str) -> Tensor:
    """Values [P] of the positives at flat `positions`, from values per anchor or per positive."""
    if is_per_anchor(values, logits):
        return values.reshape(-1)[positions // (logits.shape[-1] if logits.dim() > 1 else 1)]
    return check_count(values, positions, name)


def check_count(values: Tensor, positions: Tensor, name: str) -> Tensor:
    """`values`, if there is one for each of the positives `positions` [P]."""
    if values.shape != positions.shape:
        raise ValueError(
            f"{name} must hold one value for each of the {positions.numel()} positives, "
            f"shape ({positions.numel()},); got shape {tuple(values.shape)}"
        )
    return values


@torch.library.custom_op("triton_rankloss::spread", mutates_args=())
def scatter_to_positives(values: Tensor, is_positive: Tensor, name: str) -> Tensor:
    """Values [P] of the positives in row-major order, put where the mask `is_positive` has them; 0 elsewhere."""
    positions = is_positive.reshape(-1).nonzero().squeeze(1)
    scattered = values.new_zeros(is_positive.shape)
    scattered.view(-1)[positions] = check_count(values, positions, name)
    return scattered


@scatter_to_positives.register_fake
def _(values: Tensor, is_positive: Tensor, _: str) -> Tensor:
    return values.new_empty(is_positive.shape)


def background_flags(logits: Tensor, per_image: bool = False) -> Tensor:
    """Room for a byte for every block of a scope, uint8 [S, B]; the reference keeps none: B = 0.

    The forward kernels note in them which blocks hold negatives alone, so that backward need not read their targets.
    """
    num_scopes = logits.shape[0] if per_image else 1
    num_logits = logits.numel() // max(1, num_scopes) if dispatch.has_kernels(logits) else 0
    return logits.new_empty((num_scopes, -(-num_logits // BACKGROUND_BLOCK)), dtype=torch.uint8)

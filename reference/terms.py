"""Terms that several losses share, each with its derivative: softmax cross-entropy, smooth L1."""

import torch
from torch import Tensor

from .blocks import blocks
from .candidates import finite
from .targets import accumulation_dtype


def classes(logits: Tensor, labels: Tensor, background: int) -> tuple[Tensor, Tensor]:
    """(is background, is positive), bool [...]; negative labels are neither."""
    of_background = background % logits.shape[-1]
    return labels == of_background, (labels >= 0) & (labels != of_background)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """log(sum_c exp(x_c)) - x_label, [...]; NaN for a label beyond the last channel, anything for one below 0."""
    parts = [
        -finite(block).log_softmax(-1).gather(-1, channels(block_labels, logits.shape[-1])).squeeze(-1)
        for _, block, block_labels in blocks(logits, labels)
    ]
    return torch.where(labels >= logits.shape[-1], torch.nan, torch.cat(parts).view(labels.shape))


def cross_entropy_gradient(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """rows (softmax(x)_c - [c = label]), in the dtype of the logits; rows [...] are 0 where they do not count."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format).flatten(0, -2)
    rows = torch.where(labels >= logits.shape[-1], torch.nan, rows).reshape(-1, 1)
    first = 0
    for _, block, block_labels in blocks(logits, labels):
        part = slice(first, first := first + block_labels.numel())
        slopes, own = finite(block).softmax(-1), channels(block_labels, logits.shape[-1])
        slopes.scatter_add_(-1, own, slopes.new_full((), -1).expand(own.shape))
        torch.mul(slopes, rows[part], out=gradient[part])
    gradient[(rows.squeeze(1) == 0).nonzero().squeeze(1)] = 0  # also where a logit is NaN
    return gradient.view(logits.shape)


def channels(labels: Tensor, num_channels: int) -> Tensor:
    """The channel that each label names, [..., 1]; for a label that names none, some channel."""
    return labels.long().clamp(0, num_channels - 1).unsqueeze(-1)


def smooth_l1(d: Tensor, beta: float) -> Tensor:
    """d^2 / (2 beta) for |d| < beta, else |d| - beta / 2; with q = min(|d| / beta, 1) both are q (|d| - q beta / 2)."""
    q = (d.abs() / max(beta, torch.finfo(d.dtype).tiny)).clamp(max=1)
    return q * (d.abs() - q * beta / 2)


def smooth_l1_slope(d: Tensor, beta: float) -> Tensor:
    """clip(d / beta, -1, 1), for beta = 0 the sign of d."""
    return (d / max(beta, torch.finfo(d.dtype).tiny)).clamp(-1, 1)


def difference(pred: Tensor, target: Tensor) -> Tensor:
    """Pred - target."""
    dtype = accumulation_dtype(pred)
    return pred.to(dtype) - target.to(dtype)


def widest_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Dtype of the result: float64 if any of the arguments is, else float32."""
    is_double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32


def divisor(avg_factor: float | Tensor | None, default: Tensor) -> Tensor:
    """What the sum is divided by: `avg_factor`, or without one `default`, at least 1."""
    if avg_factor is None:
        return default.clamp(min=1)
    if isinstance(avg_factor, Tensor):
        return avg_factor.to(default.dtype)
    return default.new_full((), avg_factor)

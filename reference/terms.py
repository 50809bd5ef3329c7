"""Terms that several losses share, each with its derivative: focal and binary cross-entropy, softmax, smooth L1."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .candidates import Candidates, at_label, is_labelled
from .targets import accumulation_dtype, result_dtype


def finite(logits: Tensor) -> Tensor:
    """`logits` in the dtype of the result; infinite ones count as large finite ones, which cost much but not NaN."""
    limit = min(torch.finfo(logits.dtype).max, 1e30)
    return logits.to(result_dtype(logits)).clamp(-limit, limit)


def signed(logits: Tensor, c: Candidates) -> Tensor:
    """s: the finite logits, with the opposite sign where they are not positives."""
    scores = finite(logits)
    return torch.where(c.is_positive, scores, -scores)


def focal(score: Tensor, gamma: float) -> Tensor:
    """sigmoid(-s)^gamma softplus(-s): the focal loss of a positive with logit s, of a negative with logit -s."""
    return -torch.sigmoid(-score).pow(gamma) * logsigmoid(score)


def focal_slope(score: Tensor, gamma: float) -> Tensor:
    """Derivative of `focal` in s: -sigmoid(-s)^gamma (gamma sigmoid(s) softplus(-s) + sigmoid(-s))."""
    missing = torch.sigmoid(-score)
    return missing.pow(gamma) * (gamma * torch.sigmoid(score) * logsigmoid(score) - missing)


def classes(logits: Tensor, labels: Tensor, background: int) -> tuple[Tensor, Tensor]:
    """(is background, is positive), bool [...]; negative labels are neither."""
    of_background = background % logits.shape[-1]
    return labels == of_background, (labels >= 0) & (labels != of_background)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """log(sum_c exp(x_c)) - x_label, [...]; NaN for a label beyond the last channel, anything for one below 0."""
    terms = -at_label(finite(logits).log_softmax(-1), labels).squeeze(-1)
    return torch.where(labels >= logits.shape[-1], torch.nan, terms)


def cross_entropy_gradient(logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """rows (softmax(x)_c - [c = label]), in the dtype of the logits; rows [...] are 0 where they do not count."""
    rows = torch.where(labels >= logits.shape[-1], torch.nan, rows).unsqueeze(-1)
    slopes = finite(logits).softmax(-1) - is_labelled(logits, labels).to(rows.dtype)
    return torch.where(rows == 0, 0, rows * slopes).to(logits.dtype).contiguous()


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

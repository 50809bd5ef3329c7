"""DR Loss (Qian et al., CVPR 2020, arXiv 1907.10156).

Within a scope, one image or everything, the probabilities p = sigmoid(logit) are averaged under the distribution that
is worst for the loss among those close to uniform: it favours positives of low and negatives of high probability.
    pbar+ = sum_i q_i p_i,   q = softmax(-p / lambda+) over the positives;   without positives pbar+ = 1
    pbar- = sum_j q_j p_j,   q = softmax(p / lambda-) over the negatives;    without negatives pbar- = 0
    loss = tau / L log(1 + exp(L (pbar- - pbar+ + margin)))
averaged over the scopes that have a candidate, positive or negative.

Gradient: with k = -1 / lambda+ for positives and 1 / lambda- for negatives,
    d pbar / dp = q (1 + k (p - pbar)),   dp / d logit = p (1 - p)
    d loss / d pbar- = tau sigmoid(L (pbar- - pbar+ + margin)) = -d loss / d pbar+
`state` keeps for both kinds what it takes to make q and the rest again in one pass, as
    d loss / dp = coefficient exp(k (p - shift)) (1 + k (p - mean))
with mean = pbar, any shift that keeps exp from overflowing, and 1 / sum exp(k (p - shift)) within the coefficient.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .candidates import candidates
from .targets import accumulation_dtype, result_dtype


class Mean(NamedTuple):
    """Of every scope, [S]."""

    has_any: Tensor
    mean: Tensor
    shift: Tensor  # the probability that weighs most
    total: Tensor  # sum of exp(k (p - shift))


def dr_forward(
    logits: Tensor, targets: Tensor, margin: float, pos_lambda: float, neg_lambda: float, L: float, tau: float,
    per_image: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, state [2, 3, S]): of positives and negatives, (coefficient, shift, mean) of each of the S scopes."""
    c = candidates(logits, targets)
    p = logits.to(result_dtype(logits)).sigmoid()
    positives = tilted_mean(p, c.is_positive, -1 / pos_lambda, 1.0, per_image)
    negatives = tilted_mean(p, c.is_negative, 1 / neg_lambda, 0.0, per_image)
    counts = (positives.has_any | negatives.has_any).to(positives.total.dtype)
    share = counts / counts.sum().clamp(min=1)
    excess = L * (negatives.mean - positives.mean + margin)
    loss = (share * torch.logaddexp(torch.zeros_like(excess), excess)).sum() * (tau / L)
    slope = share * tau * excess.sigmoid()
    state = torch.stack([
        torch.stack([-slope / positives.total, positives.shift, positives.mean]),
        torch.stack([slope / negatives.total, negatives.shift, negatives.mean]),
    ])  # fmt: skip
    dtype = result_dtype(logits)
    return loss.to(dtype), state.detach().to(dtype)


def dr_backward(
    logits: Tensor, targets: Tensor, state: Tensor, upstream: Tensor, pos_lambda: float, neg_lambda: float
) -> Tensor:
    """Gradient of `logits`, in their dtype, from `state` and the upstream gradient of the loss."""
    c = candidates(logits, targets)
    of_positives, of_negatives = state.view(*state.shape, *[1] * (logits.dim() - 1))
    coefficient, shift, mean = torch.where(c.is_positive, of_positives, of_negatives)
    k = torch.where(c.is_positive, state.new_full((), -1 / pos_lambda), 1 / neg_lambda)
    scores = logits.to(state.dtype)
    p = scores.sigmoid()
    gradient = coefficient * upstream * (k * (p - shift)).exp() * (1 + k * (p - mean)) * p * (-scores).sigmoid()
    return torch.where(c.is_positive | c.is_negative, gradient, 0).to(logits.dtype).contiguous()


def tilted_mean(p: Tensor, mask: Tensor, k: float, default: float, per_image: bool) -> Mean:
    """Mean of the masked p of each scope under softmax(k p); `default` where there are none."""
    scopes = (p.shape[0], math.prod(p.shape[1:])) if per_image else (1, p.numel())
    p, mask = p.reshape(scopes), mask.reshape(scopes)
    has_any = mask.any(1)
    shift = largest(p, mask) if k > 0 else 1 - largest(1 - p, mask)
    weights = torch.where(mask, k * (p - shift.unsqueeze(1)), -torch.inf).exp()
    dtype = accumulation_dtype(p)
    total = torch.where(has_any, weights.sum(1, dtype=dtype), 1)
    mean = (weights * torch.where(mask, p, 0)).sum(1, dtype=dtype) / total
    return Mean(has_any, torch.where(has_any, mean, default), shift.to(dtype), total)


def largest(p: Tensor, mask: Tensor) -> Tensor:
    """Largest masked probability of each scope, 0 without any; a constant, since a shift of p changes no mean."""
    if p.shape[1] == 0:
        return p.new_zeros(p.shape[0])
    return torch.where(mask, p, 0).amax(1).detach()

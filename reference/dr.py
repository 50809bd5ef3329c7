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

With a process group the sums of a scope that all ranks share are added up over them. Gradients are multiplied by the
number of ranks: their mean over the ranks is then the gradient of the loss.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import distributed
from .candidates import candidates
from .targets import accumulation_dtype, result_dtype


class Sums(NamedTuple):
    """Of every scope, [S]; without any p the totals are 0."""

    shift: Tensor  # the p that weighs most
    total: Tensor  # sum of exp(k (p - shift))
    weighted: Tensor  # sum of exp(k (p - shift)) p


class Mean(NamedTuple):
    """Of every scope, [S]."""

    has_any: Tensor
    mean: Tensor
    shift: Tensor
    total: Tensor  # 1 without any p


def dr_forward(
    logits: Tensor, targets: Tensor, margin: float, pos_lambda: float, neg_lambda: float, L: float, tau: float,
    per_image: bool, group: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, state [2, 3, S]): of positives and negatives, (coefficient, shift, mean) of each of the S scopes."""
    if group is not None:
        agree(logits, margin, pos_lambda, neg_lambda, L, tau, per_image, group)
    c = candidates(logits, targets)
    p = logits.to(result_dtype(logits)).sigmoid()
    shared = None if per_image else group
    positives = tilted_mean(p, c.is_positive, -1 / pos_lambda, 1.0, per_image, shared)
    negatives = tilted_mean(p, c.is_negative, 1 / neg_lambda, 0.0, per_image, shared)
    counts = (positives.has_any | negatives.has_any).to(positives.total.dtype)
    excess = L * (negatives.mean - positives.mean + margin)
    num_ranked, loss = counts.sum(), (counts * torch.logaddexp(torch.zeros_like(excess), excess)).sum() * (tau / L)
    if group is not None and per_image:
        num_ranked, loss = distributed.total(torch.stack([num_ranked, loss]), group)
    loss = loss / num_ranked.clamp(min=1)
    slope = counts / num_ranked.clamp(min=1) * tau * excess.sigmoid()
    if group is not None:
        slope *= distributed.world_size(group)
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


def agree(
    logits: Tensor, margin: float, pos_lambda: float, neg_lambda: float, L: float, tau: float, per_image: bool,
    group: str,
) -> None:  # fmt: skip
    """A ValueError on every rank of the group if one was called otherwise."""
    lambdas = {"pos_lambda": pos_lambda, "neg_lambda": neg_lambda}
    arguments = {"margin": margin, **lambdas, "L": L, "tau": tau, "per_image": per_image}
    distributed.agree("dr_loss", arguments, logits, 0, group)


def tilted_mean(p: Tensor, mask: Tensor, k: float, default: float, per_image: bool, group: str | None) -> Mean:
    """Mean of the masked p of each scope, which the ranks of `group` share, under softmax(k p); or `default`."""
    shift, total, weighted = tilted_sums(p, mask, k, per_image)
    if group is not None:
        own = torch.stack([shift, total, weighted])
        everyone = distributed.gather(own, [1] * distributed.world_size(group), group)
        shift, total, weighted = added(Sums(*everyone), k)
    has_any = total != 0
    total = torch.where(has_any, total, 1)
    return Mean(has_any, torch.where(has_any, weighted / total, default), shift, total)


def tilted_sums(p: Tensor, mask: Tensor, k: float, per_image: bool) -> Sums:
    """Sums over the masked p of each scope."""
    scopes = (p.shape[0], math.prod(p.shape[1:])) if per_image else (1, p.numel())
    p, mask = p.reshape(scopes), mask.reshape(scopes)
    shift = largest(p, mask) if k > 0 else 1 - largest(1 - p, mask)
    weights = torch.where(mask, k * (p - shift.unsqueeze(1)), -torch.inf).exp()
    dtype = accumulation_dtype(p)
    weighted = (weights * torch.where(mask, p, 0)).sum(1, dtype=dtype)
    return Sums(shift.to(dtype), weights.sum(1, dtype=dtype), weighted)


def added(sums: Sums, k: float) -> Sums:
    """Sums [R] of the parts of a scope as those of the whole, [1]; where a part has no p, its shift weighs least."""
    shift = sums.shift.max() if k > 0 else sums.shift.min()
    kept = (k * (sums.shift - shift)).exp()
    return Sums(shift.view(1), (kept * sums.total).sum().view(1), (kept * sums.weighted).sum().view(1))


def largest(p: Tensor, mask: Tensor) -> Tensor:
    """Largest masked probability of each scope, 0 without any; a constant, since a shift of p changes no mean."""
    if p.shape[1] == 0:
        return p.new_zeros(p.shape[0])
    return torch.where(mask, p, 0).amax(1).detach()

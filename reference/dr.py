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

from typing import NamedTuple

import torch
from torch import Tensor

from . import candidates, distributed
from .targets import accumulation_dtype, positive_positions, result_dtype


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
    shared = None if per_image else group
    scopes = list(zip(logits, targets, strict=True)) if per_image else [(logits, targets)]
    of_positives = joined([sums_of_positives(x, t, -1 / pos_lambda) for x, t in scopes], logits)
    of_negatives = joined([sums_of_negatives(x, t, 1 / neg_lambda) for x, t in scopes], logits)
    positives = tilted_mean(of_positives, -1 / pos_lambda, 1.0, shared)
    negatives = tilted_mean(of_negatives, 1 / neg_lambda, 0.0, shared)
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
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    scopes = zip(logits, targets, gradient, strict=True) if state.shape[2] != 1 else [(logits, targets, gradient)]
    for number, (scope, its_targets, of_scope) in enumerate(scopes):
        of_positives, of_negatives = state[..., number]
        flat = of_scope.view(-1)
        for start, scores, mask in candidates.negatives(scope, its_targets):
            slopes = upstream * slope(scores, of_negatives, 1 / neg_lambda)
            flat[start : start + scores.numel()] = torch.where(mask, slopes, 0)
        positions = positive_positions(scope, its_targets)
        slopes = upstream * slope(candidates.positives(scope, positions), of_positives, -1 / pos_lambda)
        flat[positions] = slopes.to(gradient.dtype)
    return gradient


def slope(scores: Tensor, state: Tensor, k: float) -> Tensor:
    """Derivative [M] of the loss in logits of one kind, from what `state` [3] keeps of it."""
    coefficient, shift, mean = state
    p = scores.sigmoid()
    return coefficient * (k * (p - shift)).exp() * (1 + k * (p - mean)) * p * (-scores).sigmoid()


def agree(
    logits: Tensor, margin: float, pos_lambda: float, neg_lambda: float, L: float, tau: float, per_image: bool,
    group: str,
) -> None:  # fmt: skip
    """A ValueError on every rank of the group if one was called otherwise."""
    lambdas = {"pos_lambda": pos_lambda, "neg_lambda": neg_lambda}
    arguments = {"margin": margin, **lambdas, "L": L, "tau": tau, "per_image": per_image}
    distributed.agree("dr_loss", arguments, logits, 0, group)


def tilted_mean(sums: Sums, k: float, default: float, group: str | None) -> Mean:
    """Mean of the p of each scope, which the ranks of `group` share, under softmax(k p); or `default`."""
    if group is not None:
        everyone = distributed.gather(torch.stack(sums), [1] * distributed.world_size(group), group)
        sums = added(Sums(*everyone), k)
    has_any = sums.total != 0
    total = torch.where(has_any, sums.total, 1)
    return Mean(has_any, torch.where(has_any, sums.weighted / total, default), sums.shift, total)


def sums_of_positives(logits: Tensor, targets: Tensor, k: float) -> Sums:
    """Sums [1] over the positives of a scope."""
    return tilted_sums(candidates.positives(logits, positive_positions(logits, targets)).sigmoid(), k)


def sums_of_negatives(logits: Tensor, targets: Tensor, k: float) -> Sums:
    """Sums [1] over the negatives of a scope."""
    blocks = candidates.negatives(logits, targets)
    parts = [tilted_sums(torch.where(mask, scores.sigmoid(), -torch.inf), k) for _, scores, mask in blocks]
    return added(joined(parts, logits), k)


def tilted_sums(p: Tensor, k: float) -> Sums:
    """Sums [1] over p [M]; for k > 0 a p of -inf does not count."""
    dtype = accumulation_dtype(p)
    if p.numel() == 0:
        return Sums(p.new_full((1,), float(k < 0), dtype=dtype), *p.new_zeros(2, 1, dtype=dtype))
    shift = (p.amax() if k > 0 else p.amin()).clamp(min=0).detach()
    weights = (k * (p - shift)).exp()
    weighted = (weights * p.clamp(min=0)).sum(dtype=dtype)
    return Sums(shift.to(dtype).view(1), weights.sum(dtype=dtype).view(1), weighted.view(1))


def joined(parts: list[Sums], like: Tensor) -> Sums:
    """One after the other."""
    none = like.new_empty(3, 0, dtype=accumulation_dtype(like))
    return Sums(*torch.cat([none, *(torch.stack(part) for part in parts)], 1))


def added(sums: Sums, k: float) -> Sums:
    """Sums [R] of the parts of a scope as those of the whole, [1]; where a part has no p, its shift weighs least."""
    shift = sums.shift.max() if k > 0 else sums.shift.min()
    kept = (k * (sums.shift - shift)).exp()
    return Sums(shift.view(1), (kept * sums.total).sum().view(1), (kept * sums.weighted).sum().view(1))

"""DR Loss (Qian et al., CVPR 2020, arXiv 1907.10156).

The probabilities p = sigmoid(x) of the logits x are averaged under the distribution that is worst for the loss among
those close to uniform: it favours positives of low and negatives of high probability.
    pbar+ = sum_i q_i p_i,   q = softmax(-p / lambda+) over the positives i;   without positives pbar+ = 1
    pbar- = sum_j q_j p_j,   q = softmax(p / lambda-) over the negatives j;    without negatives pbar- = 0
    loss = tau / L log(1 + exp(L (pbar- - pbar+ + margin)));                   without both 0
Both means are sum w p / sum w with w = exp(k (p - shift)), k = -1 / lambda+ or 1 / lambda-, and any shift. Sums of the
parts of a whole, brought to one shift, add up to its sums.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from . import add_up


def dr_loss(
    positives: Tensor, negatives: Tensor, margin: float, pos_lambda: float, neg_lambda: float, L: float, tau: float
) -> Tensor:
    """Loss of the logits [P] and [N] that are ranked against each other."""
    if positives.numel() + negatives.numel() == 0:
        return positives.sum()
    mean_positive = tilted_mean(tilted_sums(positives.sigmoid(), -1 / pos_lambda), default=1.0)
    mean_negative = tilted_mean(tilted_sums(negatives.sigmoid(), 1 / neg_lambda), default=0.0)
    return hinge(mean_negative - mean_positive + margin, L, tau)


def hinge(excess: Tensor, L: float, tau: float) -> Tensor:
    """tau / L log(1 + exp(L excess))."""
    return tau * softplus(excess, beta=L, threshold=40)


def tilted_sums(p: Tensor, k: float) -> Tensor:
    """(shift, sum w, sum w p), [3, ...], of p [..., M]; the shift is the p that weighs most, or could least."""
    if p.shape[-1] == 0:
        p = p.new_full((*p.shape[:-1], 1), -torch.inf if k > 0 else torch.inf)
    shift = (p.amax(-1) if k > 0 else p.amin(-1)).clamp(0, 1).detach()
    w = (k * (p - shift[..., None])).exp()  # for k > 0 a p of -inf, for k < 0 of inf, is none: it weighs nothing
    return torch.stack([add_up(shift[..., None], -1), add_up(w, -1), add_up(w * p.clamp(0, 1), -1)])


def add_tilted_sums(parts: Tensor, k: float) -> Tensor:
    """Those of the whole, [3, ...], from those of its parts, [3, ..., R]."""
    shifts, totals, weighted = parts
    shift = shifts.amax(-1) if k > 0 else shifts.amin(-1)
    w = (k * (shifts - shift[..., None])).exp()
    return torch.stack([shift, add_up(w * totals, -1), add_up(w * weighted, -1)])


def tilted_mean(sums: Tensor, default: float) -> Tensor:
    """Pbar, [...], from sums [3, ...]; `default` where there is no p."""
    _, total, weighted = sums
    return torch.where(total == 0, default, weighted / total.clamp(min=1))  # the p that weighs most adds 1 to the total


def tilted_slopes(logits: Tensor, k: float, shift: Tensor, mean: Tensor) -> Tensor:
    """w (1 + k (p - pbar)) dp/dx: the derivatives of pbar = `mean` in the logits, times sum w."""
    p, rest = logits.sigmoid(), (-logits).sigmoid()  # 1 - p loses digits where p is near 1
    return (k * (p - shift)).exp() * (1 + k * (p - mean)) * p * rest

"""Count and transport as they are defined, over all pairs of a candidate and a positive: the oracle.

H(x) = clip(x / (2 delta) + 1/2, 0, 1),   for delta = 0: H(x) = [x >= 0]
count      b_i = sum_j m_j H(n_j - p_i)   how much (mass m_j, by default 1) is ranked above positive i
transport  g_j = sum_i w_i H(n_j - p_i)   carries the error w_i of each positive to what is ranked above it

Leading dimensions, here and in the losses, are of scopes: what is ranked by itself, like the images of a batch.
"""

import torch
from torch import Tensor


def step(x: Tensor, delta: float) -> Tensor:
    """H(x); NaN stays."""
    if delta == 0:
        return torch.where(x.isnan(), x, (x >= 0).to(x.dtype))
    return (x / (2 * delta) + 0.5).clamp(0, 1)


def count(candidates: Tensor, positives: Tensor, delta: float, masses: Tensor | None = None) -> Tensor:
    """b_i [..., P] of candidates n [..., N] and positives p [..., P]; masses m [..., N], by default 1."""
    above = step(candidates[..., None, :] - positives[..., :, None], delta)
    return above.sum(-1) if masses is None else (above @ masses[..., None]).squeeze(-1)


def transport(candidates: Tensor, positives: Tensor, weights: Tensor, delta: float) -> Tensor:
    """g_j [..., N] of candidates n [..., N], positives p [..., P] and their weights w [..., P]."""
    return (weights[..., None, :] @ step(candidates[..., None, :] - positives[..., :, None], delta)).squeeze(-2)

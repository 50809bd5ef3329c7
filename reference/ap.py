"""AP Loss (Chen et al., CVPR 2019, arXiv 1904.06373; TPAMI 2020, arXiv 2008.07294).

    a_i = 1 + sum_{k != i} H(p_k - p_i)       rank of positive i among the positives
    b_i = sum_j H(n_j - p_i)                  negatives ranked above it
    prec_i = a_i / (a_i + b_i)
    q_i = max of prec_k over k with p_k <= p_i    (interpolate=False: q = prec)
    loss = 1 - mean_i q_i

The update that replaces the gradient hands the error 1 - q_i of each positive to the negatives that cause it:
    d/dp_i = -(1 - q_i) / |P|
    d/dn_j = sum_i w_i H(n_j - p_i),   w_i = (1 - q_i) / (b_i |P|)
which is 1 / ((a_i + b_i) |P|), times (1 - q_i) / (1 - prec_i) where the interpolation raised the precision.
"""

from types import ModuleType

import torch
from torch import Tensor

from . import dense


def ap_loss(
    positives: Tensor, negatives: Tensor, delta: float = 1.0, interpolate: bool = True, engine: ModuleType = dense
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, update of the positives [P], update of the negatives [N])."""
    above = engine.count(negatives, positives, delta)
    error, weights = ap_error(positives, above, delta, interpolate, engine)
    num = max(1, positives.numel())
    return error.sum() / num, -error / num, engine.transport(negatives, positives, weights / num, delta)


def ap_error(
    positives: Tensor, above: Tensor, delta: float, interpolate: bool, engine: ModuleType
) -> tuple[Tensor, Tensor]:
    """(error 1 - q_i, weight |P| w_i), [..., P], of positives p [..., P] with b [..., P] negatives above them."""
    among = rank_among_positives(positives, delta, engine)
    precision = among / (among + above)
    if interpolate:
        precision = running_maximum(positives, precision)
    error = 1 - precision
    # b_i = 0 leaves prec_i = 1: no error, and nothing to hand it to.
    return error, torch.where(above == 0, 0, error / above)


def rank_among_positives(positives: Tensor, delta: float, engine: ModuleType) -> Tensor:
    """a_i [..., P]: the positive itself counts as 1, every other by H."""
    itself = dense.step(positives.new_zeros(()), delta)
    return engine.count(positives, positives, delta) + (1 - itself)


def running_maximum(positives: Tensor, precision: Tensor) -> Tensor:
    """q_i [..., P]: the best precision among the positives that score no higher than i."""
    order = positives.argsort(dim=-1, stable=True)
    return torch.empty_like(precision).scatter_(-1, order, precision.gather(-1, order).cummax(-1).values)

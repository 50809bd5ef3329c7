"""aLRP Loss (Oksuz et al., NeurIPS 2020, arXiv 2009.13592).

    rank_i = a_i + b_i        as for AP Loss: a_i among the positives (itself counts as 1), b_i among the negatives
    classification = 1 - mean_i (a_i / rank_i)
    localization = mean_i (sum of e_k over p_k >= p_i) / rank_i        hard order, e_i the localization error of i

localization is differentiable in e, with rank held constant. The update of the classification part is error-driven:
    f_i = (b_i + sum_{k != i} H(p_k - p_i) e_k) / rank_i    where b_i > eps, else 0
    d/dp_i = -f_i / |P|
    d/dn_j = sum_i w_i H(n_j - p_i),   w_i = f_i / (b_i |P|)
"""

from types import ModuleType

import torch
from torch import Tensor

from . import dense
from .ap import rank_among_positives


def alrp_loss(
    positives: Tensor,
    negatives: Tensor,
    errors: Tensor,
    delta: float = 1.0,
    eps: float = 1e-5,
    engine: ModuleType = dense,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(classification, localization, update of the positives [P], of the negatives [N], gradient in the errors [P])."""
    above = engine.count(negatives, positives, delta)
    *losses, share, weights, grad_errors = alrp_error(positives, above, errors, delta, eps, engine)
    num = max(1, positives.numel())
    classification, localization = (loss.sum() / num for loss in losses)
    carried = engine.transport(negatives, positives, weights / num, delta)
    return classification, localization, -share / num, carried, grad_errors / num


def alrp_error(
    positives: Tensor, above: Tensor, errors: Tensor, delta: float, eps: float, engine: ModuleType
) -> tuple[Tensor, ...]:
    """Of positives p with b negatives above and errors e, [..., P]: (1 - a_i / rank_i, localization_i, f_i, |P| w_i,
    derivative of the sum of the localization_i in e_i), before anything is carried to the negatives."""
    among = rank_among_positives(positives, delta, engine)
    rank = among + above
    itself = dense.step(positives.new_zeros(()), delta)
    errors_above = engine.count(positives, positives, delta, errors) - itself * errors

    share = torch.where(above <= eps, 0, (above + errors_above) / rank)
    weights = torch.where(above <= eps, 0, share / above)
    localization = engine.count(positives, positives, 0, errors) / rank
    return above / rank, localization, share, weights, engine.transport(positives, positives, 1 / rank, 0)

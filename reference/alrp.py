"""aLRP Loss (Oksuz et al., NeurIPS 2020, arXiv 2009.13592).

    rank_i = a_i + b_i        as for AP Loss: a_i among the positives (itself counts as 1), b_i among the negatives
    classification = 1 - mean_i (a_i / rank_i)
    localization = mean_i (sum of e_k over p_k >= p_i) / rank_i        hard order, e_i the localization error of i

localization is differentiable in e, with rank held constant. The update of the classification part is error-driven:
    f_i = (b_i + sum_{k != i} H(p_k - p_i) e_k) / rank_i    where b_i > eps, else 0
    d/dp_i = -f_i / |P|
    d/dn_j = sum_i w_i H(n_j - p_i),   w_i = f_i / (b_i |P|)
"""

import torch
from torch import Tensor

from .ap import positives_ranked_above
from .ranking import count, step, transport
from .scopes import (
    Ranking,
    Scope,
    combine,
    negatives_above,
    own_gradient,
    own_positions,
    split,
    values_by_scope,
)
from .targets import check_per_positive


def forward(
    logits: Tensor, targets: Tensor, localization_errors: Tensor, delta: float, eps: float, per_image: bool,
    group: str | None = None,
) -> tuple[Ranking, Tensor]:  # fmt: skip
    """(classification, localization) of every scope, averaged, with the state for backward.

    The tensor beside it, [P], is the gradient of the localization part with respect to the error of each positive.
    """
    batch = split(logits, targets, delta, per_image, group, "alrp_loss", eps=eps)
    errors = check_per_positive(localization_errors, own_positions(batch), "localization_errors")
    terms, error_gradients = [], []
    for scope, scope_errors in zip(batch.scopes, values_by_scope(errors, batch), strict=True):
        term, error_gradient = alrp_error(scope, scope_errors, delta, eps)
        terms.append(term)
        error_gradients.append(error_gradient)
    ranking = combine(batch, terms, logits)
    return ranking, own_gradient(torch.cat(error_gradients), batch).to(ranking.losses.dtype)


def alrp_error(scope: Scope, errors: Tensor, delta: float, eps: float) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """((losses [2], weights [P], updates [1, P]), gradient of the localization part in e [P]) of one scope."""
    positives = scope.positives
    num_positives = positives.numel()
    if num_positives == 0:
        return (positives.new_zeros(2), positives, positives.unsqueeze(0)), positives
    above = negatives_above(scope, delta)
    among_positives = positives_ranked_above(positives, delta)
    rank = among_positives + above

    own = step(positives.new_zeros(()), delta)
    error_above = count(positives, positives, delta, masses=errors) - own * errors
    share = torch.where(above <= eps, 0, (above + error_above) / rank / num_positives)
    weights = torch.where(above <= eps, 0, share / above)

    classification = 1 - (among_positives / rank).mean()
    localization = (count(positives, positives, 0, masses=errors) / rank).mean()
    error_gradient = transport(positives, positives, 1 / rank, 0) / num_positives
    losses = torch.stack([classification, localization])
    return (losses, weights, -share.unsqueeze(0)), error_gradient

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
from .ranking import Ranking, Scope, combine, count, split_scopes, step, transport
from .targets import check_per_positive


def forward(
    logits: Tensor, targets: Tensor, localization_errors: Tensor, delta: float, eps: float, per_image: bool
) -> tuple[Ranking, Tensor]:
    """(classification, localization) of every scope, averaged, with the state for backward.

    The tensor beside it, [P], is the gradient of the localization part with respect to each positive's error.
    """
    scopes = split_scopes(logits, targets, delta, per_image)
    positions = torch.cat([scope.positions for scope in scopes])
    sizes = [scope.positions.numel() for scope in scopes]
    errors = check_per_positive(localization_errors, positions, "localization_errors")
    terms, error_gradients = [], []
    for scope, scope_errors in zip(scopes, errors.split(sizes), strict=True):
        term, error_gradient = alrp_error(scope, scope_errors.to(scope.positives.dtype), delta, eps)
        terms.append(term)
        error_gradients.append(error_gradient)
    ranking = combine(scopes, terms, logits)
    num_ranked = max(1, sum(size > 0 for size in sizes))
    return ranking, (torch.cat(error_gradients) / num_ranked).to(ranking.losses.dtype)


def alrp_error(scope: Scope, errors: Tensor, delta: float, eps: float) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """((losses [2], weights [P], updates [1, P]), gradient of the localization part in e [P]) of one scope."""
    positives = scope.positives
    num_positives = positives.numel()
    if num_positives == 0:
        return (positives.new_zeros(2), positives, positives.unsqueeze(0)), positives
    above = count(scope.negatives, positives, delta)
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

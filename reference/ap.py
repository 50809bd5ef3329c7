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

import torch
from torch import Tensor

from .ranking import count, step
from .scopes import Ranking, Scope, combine, negatives_above, split


def forward(
    logits: Tensor, targets: Tensor, delta: float, interpolate: bool, per_image: bool, group: str | None = None
) -> Ranking:
    """AP loss of every scope, averaged, with the state for backward."""
    batch = split(logits, targets, delta, per_image, group, "ap_loss", interpolate=interpolate)
    return combine(batch, [ap_error(scope, delta, interpolate) for scope in batch.scopes], logits)


def ap_error(scope: Scope, delta: float, interpolate: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(loss [1], weights [P], updates [1, P]) of one scope."""
    positives = scope.positives
    if positives.numel() == 0:
        return positives.new_zeros(1), positives, positives.unsqueeze(0)
    above = negatives_above(scope, delta)
    among_positives = positives_ranked_above(positives, delta)
    precision = among_positives / (among_positives + above)
    interpolated = running_maximum(positives, precision) if interpolate else precision
    share = (1 - interpolated) / positives.numel()
    weights = share / above
    # b_i = 0 leaves prec_i = 1: no error, and nothing to hand it to.
    weights = torch.where(above == 0, 0, weights)
    return share.sum().unsqueeze(0), weights, -share.unsqueeze(0)


def positives_ranked_above(positives: Tensor, delta: float) -> Tensor:
    """a_i: the positive itself counts as 1, every other by H."""
    own = step(positives.new_zeros(()), delta)
    return count(positives, positives, delta) + (1 - own)


def running_maximum(positives: Tensor, precision: Tensor) -> Tensor:
    """q_i: the best precision among the positives that score no higher than i."""
    order = positives.argsort(stable=True)
    maximum = torch.empty_like(precision)
    maximum[order] = precision[order].cummax(0).values
    return maximum

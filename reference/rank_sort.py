"""Rank & Sort Loss (Oksuz et al., ICCV 2021, arXiv 2107.11669). Positive i carries an IoU target t_i.

    H_ik = H(p_k - p_i)        r_i = sum_k H_ik, k = i included: it counts H(0), unlike in AP and aLRP Loss
    b_i = sum_j H(n_j - p_i)
    ranking_i = b_i / (r_i + b_i)
    sorting_i = sum_k H_ik (1 - t_k) / r_i  -  the same sums, in both places, over k with t_k >= t_i only
    outputs: mean_i ranking_i, mean_i sorting_i

The update is error-driven: ranking errors go to the negatives above, sorting errors to the missorted positives above,
those with a lower target:
    d/dp_i = -(ranking_i where b_i > eps) / |P|
             -(sorting_i where m_i > 0) / |P|  +  sum_k sorting_k [t_i < t_k] H_ki / (m_k |P|)
    d/dn_j = sum_i w_i H(n_j - p_i),   w_i = ranking_i / (b_i |P|)
    m_i = sum_k [t_k < t_i] H_ik
"""

import torch
from torch import Tensor

from .ranking import count, step
from .scopes import Ranking, Scope, combine, negatives_above, own_positions, split, values_by_scope
from .targets import per_positive

PAIRS_AT_ONCE = 2**18  # of the |P| x |P| comparison of scores and targets: memory stays O(|P|), and in a cache


def forward(
    logits: Tensor, targets: Tensor, iou: Tensor | None, delta: float, eps: float, per_image: bool,
    group: str | None = None,
) -> Ranking:  # fmt: skip
    """(ranking, sorting) of every scope, averaged, with the state for backward.

    Without `iou` the dense targets hold the IoU of the positives.
    """
    batch = split(logits, targets, delta, per_image, group, "rank_sort_loss", eps=eps)
    positions = own_positions(batch)
    iou = targets.reshape(-1)[positions] if iou is None else per_positive(iou, logits, positions, "iou")
    terms = [
        rank_sort_error(scope, scope_iou, delta, eps)
        for scope, scope_iou in zip(batch.scopes, values_by_scope(iou, batch), strict=True)
    ]
    return combine(batch, terms, logits)


def rank_sort_error(scope: Scope, iou: Tensor, delta: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(losses [2], weights [P], updates [2, P]) of one scope."""
    positives = scope.positives
    num_positives = positives.numel()
    if num_positives == 0:
        return positives.new_zeros(2), positives, positives.new_zeros(2, 0)
    above = negatives_above(scope, delta)
    ranking = above / (count(positives, positives, delta) + above)
    share = torch.where(above <= eps, 0, ranking / num_positives)
    weights = torch.where(above <= eps, 0, share / above)

    sorting, sorting_updates = sorting_error(positives, iou, delta)
    losses = torch.stack([ranking.mean(), sorting.mean()])
    return losses, weights, torch.stack([-share, sorting_updates / num_positives])


def sorting_error(positives: Tensor, iou: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """sorting_i [P], and |P| times the update that it makes [P]."""
    num_positives = positives.numel()
    errors, moved_up, moved_down = (torch.zeros_like(positives) for _ in range(3))
    num_rows = max(1, PAIRS_AT_ONCE // num_positives)
    for first in range(0, num_positives, num_rows):
        rows = slice(first, first + num_rows)
        p, t = positives[rows], iou[rows]
        above = step(positives[None, :] - p[:, None], delta)
        missorted = above * (iou[None, :] < t[:, None])
        in_order = above - missorted
        current = (above @ (1 - iou)) / above.sum(1)
        target = (in_order @ (1 - iou)) / in_order.sum(1)
        num_missorted = missorted.sum(1)
        errors[rows] = current - target
        moved_up[rows] = torch.where(num_missorted > 0, current - target, 0)
        moved_down += torch.where(num_missorted > 0, (current - target) / num_missorted, 0) @ missorted
    return errors, moved_down - moved_up

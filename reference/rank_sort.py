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

from types import ModuleType

import torch
from torch import Tensor

from . import dense

PAIRS_AT_ONCE = 2**18  # of the |P| x |P| comparison of scores and targets: memory stays O(|P|), and in a cache


def rank_sort_loss(
    positives: Tensor,
    negatives: Tensor,
    iou: Tensor,
    delta: float = 0.5,
    eps: float = 1e-10,
    engine: ModuleType = dense,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(ranking, sorting, update of the positives and of the negatives by ranking, of the positives by sorting)."""
    above = engine.count(negatives, positives, delta)
    ranking, share, weights = ranking_error(positives, above, delta, eps, engine)
    sorting, update = sorting_error(positives, iou, delta)
    num = max(1, positives.numel())
    carried = engine.transport(negatives, positives, weights / num, delta)
    return ranking.sum() / num, sorting.sum() / num, -share / num, carried, update / num


def ranking_error(
    positives: Tensor, above: Tensor, delta: float, eps: float, engine: ModuleType
) -> tuple[Tensor, Tensor, Tensor]:
    """(ranking_i, what goes to negatives, |P| w_i) of positives p with b negatives above them; all are [..., P]."""
    ranking = above / (engine.count(positives, positives, delta) + above)
    share = torch.where(above <= eps, 0, ranking)
    return ranking, share, torch.where(above <= eps, 0, share / above)


def sorting_error(positives: Tensor, iou: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """(sorting_i, |P| times the update) of positives p with IoU targets t; all are [..., P]."""
    error, moved_up, moved_down = (torch.zeros_like(positives) for _ in range(3))
    rows_at_once = max(1, PAIRS_AT_ONCE // max(1, positives.numel()))
    for rows in torch.arange(positives.shape[-1], device=positives.device).split(rows_at_once):
        above = dense.step(positives[..., None, :] - positives[..., rows, None], delta)
        missorted = above * (iou[..., None, :] < iou[..., rows, None])
        in_order = above - missorted
        current = (above @ (1 - iou)[..., None]).squeeze(-1) / above.sum(-1)
        target = (in_order @ (1 - iou)[..., None]).squeeze(-1) / in_order.sum(-1)
        num_missorted = missorted.sum(-1)
        error[..., rows] = current - target
        moved_up[..., rows] = torch.where(num_missorted > 0, current - target, 0)
        share = torch.where(num_missorted > 0, (current - target) / num_missorted, 0)
        moved_down += (share[..., None, :] @ missorted).squeeze(-2)
    return error, moved_down - moved_up

"""The published form of the ranking losses: a Python loop over the positives, vectorized over the negatives.

Written from the description in the papers: the negatives that can matter are selected once, positives are walked in
ascending order of score, and each adds its part of the update. Temporaries that the loop does not need are avoided.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .ranking import Update, localization, step_


def walk(positives: Tensor, negatives: Tensor, delta: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(i, H(p_k - p_i) [P], H(n_j - p_i) [N]) from the lowest score up."""
    for i in positives.argsort():
        yield i, step_(positives - positives[i], delta), step_(negatives - positives[i], delta)


def ap(positives: Tensor, negatives: Tensor, delta: float) -> Update:
    """AP Loss, interpolated."""
    best = positives.new_zeros(())
    precision, update, carried = (torch.zeros_like(x) for x in (positives, positives, negatives))
    for i, among, above in walk(positives, negatives, delta):
        among[i] = 1
        among_positives = among.sum()
        rank = among_positives + above.sum()
        current = among_positives / rank
        # The branch is the interpolation: a precision below the best so far is raised to it.
        if current >= best:
            best = current
            carried.addcdiv_(above, rank)
        else:
            carried.addcmul_(above, (1 - best) / (1 - current) / rank)
        precision[i], update[i] = best, best - 1
    num = positives.numel()
    return (1 - precision.mean(),), update.div_(num), carried.div_(num)


def alrp(positives: Tensor, negatives: Tensor, errors: Tensor, delta: float, eps: float = 1e-5) -> Update:
    """(classification, localization) of aLRP Loss, with the localization errors e [P]."""
    precision, rank, update, carried = (torch.zeros_like(x) for x in (positives, positives, positives, negatives))
    for i, among, above in walk(positives, negatives, delta):
        among[i] = 0
        among_positives, num_above = 1 + among.sum(), above.sum()
        rank[i] = among_positives + num_above
        precision[i] = among_positives / rank[i]
        if num_above > eps:
            error = (num_above + among @ errors) / rank[i]
            update[i] = -error
            carried.addcmul_(above, error / num_above)
    num = positives.numel()
    return (1 - precision.mean(), localization(positives, errors, rank)), update.div_(num), carried.div_(num)


def rank_sort(positives: Tensor, negatives: Tensor, iou: Tensor, delta: float, eps: float = 1e-10) -> Update:
    """(ranking, sorting) of Rank & Sort Loss, with the IoU [P]; as published, one update serves both parts."""
    ranking, sorting, update, carried = (torch.zeros_like(x) for x in (positives, positives, positives, negatives))
    for i, among, above in walk(positives, negatives, delta):
        num_among, num_above = among.sum(), above.sum()
        ranking[i] = num_above / (num_among + num_above)
        if num_above > eps:
            update[i] -= ranking[i]
            carried.addcmul_(above, ranking[i] / num_above)

        in_order = among * (iou >= iou[i])
        missorted = among - in_order
        sorting[i] = among @ (1 - iou) / num_among - in_order @ (1 - iou) / in_order.sum()
        num_missorted = missorted.sum()
        if num_missorted > eps:
            update[i] -= sorting[i]
            update.addcmul_(missorted, sorting[i] / num_missorted)
    num = positives.numel()
    return (ranking.mean(), sorting.mean()), update.div_(num), carried.div_(num)


FORMULAS = {"ap": ap, "alrp": alrp, "rank_sort": rank_sort}

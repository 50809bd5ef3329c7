"""The published form of the ranking losses: a Python loop over the positives, vectorized over the negatives.

Written from the description in the papers: the negatives that can matter are selected once, positives are walked in
ascending order of score, and each adds its part of the update. Temporaries that the loop does not need are avoided.
"""

import torch
from torch import Tensor

from .common import Update, candidates, localization, step, step_, with_update


def ap_loss(logits: Tensor, targets: Tensor, delta: float = 1.0) -> Tensor:
    """AP Loss, interpolated; `targets` dense."""
    return with_update(logits, candidates(logits, targets, delta), _ap, delta)[0]


def alrp_loss(
    logits: Tensor, targets: Tensor, errors: Tensor, delta: float = 1.0, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(classification, localization) of aLRP Loss; `targets` dense, `errors` [P]."""
    c = candidates(logits, targets, delta)
    rank, errors = torch.empty_like(c.positives), errors.to(c.positives.dtype)
    (classification,) = with_update(logits, c, _alrp, errors.detach(), delta, eps, rank)
    return classification, localization(errors, c.positives.argsort(), rank)


def rank_sort_loss(logits: Tensor, targets: Tensor, delta: float = 0.5, eps: float = 1e-10) -> tuple[Tensor, Tensor]:
    """(ranking, sorting) of Rank & Sort Loss; `targets` dense, with the IoU of the positives.

    As published, one update serves both parts, scaled by the upstream gradient of the first.
    """
    c = candidates(logits, targets, delta)
    iou = targets.reshape(-1)[c.positive_positions].to(c.positives.dtype)
    ranking, sorting = with_update(logits, c, _rank_sort, iou, delta, eps)
    return ranking, sorting


def _ap(positives: Tensor, negatives: Tensor, delta: float) -> Update:
    best = positives.new_zeros(())
    precision, of_positives = torch.empty_like(positives), torch.empty_like(positives)
    of_negatives = torch.zeros_like(negatives)
    for i in positives.argsort():
        among = step(positives - positives[i], delta)
        among[i] = 1
        above = step_(negatives - positives[i], delta)
        among_positives = among.sum()
        rank = among_positives + above.sum()
        current = among_positives / rank
        # The branch is the interpolation: a precision below the best so far is raised to it.
        if current >= best:
            best = current
            of_negatives.addcdiv_(above, rank)
        else:
            of_negatives.addcmul_(above, (1 - best) / (1 - current) / rank)
        precision[i] = best
        of_positives[i] = best - 1
    num = positives.numel()
    return (1 - precision.mean(),), of_positives.div_(num), of_negatives.div_(num)


def _alrp(positives: Tensor, negatives: Tensor, errors: Tensor, delta: float, eps: float, rank: Tensor) -> Update:
    precision, of_positives = torch.empty_like(positives), torch.zeros_like(positives)
    of_negatives = torch.zeros_like(negatives)
    for i in positives.argsort():
        among = step(positives - positives[i], delta)
        among[i] = 0
        above = step_(negatives - positives[i], delta)
        among_positives, num_above = 1 + among.sum(), above.sum()
        rank[i] = among_positives + num_above
        precision[i] = among_positives / rank[i]
        if num_above > eps:
            error = (num_above + among @ errors) / rank[i]
            of_positives[i] = -error
            of_negatives.addcmul_(above, error / num_above)
    num = positives.numel()
    return (1 - precision.mean(),), of_positives.div_(num), of_negatives.div_(num)


def _rank_sort(positives: Tensor, negatives: Tensor, iou: Tensor, delta: float, eps: float) -> Update:
    ranking, sorting = torch.empty_like(positives), torch.empty_like(positives)
    of_positives, of_negatives = torch.zeros_like(positives), torch.zeros_like(negatives)
    for i in positives.argsort():
        among = step(positives - positives[i], delta)
        above = step_(negatives - positives[i], delta)
        num_among, num_above = among.sum(), above.sum()
        ranking[i] = num_above / (num_among + num_above)
        if num_above > eps:
            of_positives[i] -= ranking[i]
            of_negatives.addcmul_(above, ranking[i] / num_above)

        in_order = among * (iou >= iou[i])
        missorted = among - in_order
        sorting[i] = among @ (1 - iou) / num_among - in_order @ (1 - iou) / in_order.sum()
        num_missorted = missorted.sum()
        if num_missorted > eps:
            of_positives[i] -= sorting[i]
            of_positives.addcmul_(missorted, sorting[i] / num_missorted)
    num = positives.numel()
    return (ranking.mean(), sorting.mean()), of_positives.div_(num), of_negatives.div_(num)

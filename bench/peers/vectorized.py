"""The ranking losses as the |P| x |N| matrix of H(n_j - p_i), in blocks of negatives so that it fits in memory.

The matrix is made twice, once to count and once to carry the errors back; keeping it would take 4 |P| |N| bytes.
"""

from typing import Protocol

import torch
from torch import Tensor

from .bucketed import sorting_errors
from .common import Update, candidates, step, with_update

ELEMENTS_AT_ONCE = {"cpu": 2**18}  # what stays in a core's cache
ELEMENTS_ON_A_GPU = 2**27


class Matrix(Protocol):
    """The two products with the matrix H(n_j - p_i)."""

    def count(self, positives: Tensor, negatives: Tensor, delta: float) -> Tensor:
        """sum_j H(n_j - p_i), [P]."""

    def transport(self, positives: Tensor, negatives: Tensor, weights: Tensor, delta: float) -> Tensor:
        """sum_i w_i H(n_j - p_i), [N]."""


class Blocks:
    """The matrix in eager mode, a block of negatives at a time."""

    def count(self, positives: Tensor, negatives: Tensor, delta: float) -> Tensor:
        total = torch.zeros_like(positives)
        for block in blocks(negatives, positives):
            total += matrix(positives, block, delta).sum(1)
        return total

    def transport(self, positives: Tensor, negatives: Tensor, weights: Tensor, delta: float) -> Tensor:
        carried = torch.empty_like(negatives)
        for block, out in zip(blocks(negatives, positives), blocks(carried, positives), strict=True):
            torch.mv(matrix(positives, block, delta).t(), weights, out=out)
        return carried


def blocks(negatives: Tensor, positives: Tensor) -> tuple[Tensor, ...]:
    elements = ELEMENTS_AT_ONCE.get(negatives.device.type, ELEMENTS_ON_A_GPU)
    return negatives.split(max(1, elements // positives.numel()))


def matrix(positives: Tensor, negatives: Tensor, delta: float) -> Tensor:
    """H(n_j - p_i), [P, N], in two passes: x / (2 delta) + 1/2 is made of shifted and scaled scores."""
    if delta == 0:
        return (negatives[None, :] >= positives[:, None]).to(negatives.dtype)
    scale = 1 / (2 * delta)
    return torch.sub((negatives * scale)[None, :], (positives * scale - 0.5)[:, None]).clamp_(0, 1)


BLOCKS = Blocks()


def ap_loss(logits: Tensor, targets: Tensor, delta: float = 1.0, matrix: Matrix = BLOCKS) -> Tensor:
    """AP Loss, interpolated; `targets` dense."""
    return with_update(logits, candidates(logits, targets, delta), _ap, matrix, delta)[0]


def alrp_loss(
    logits: Tensor, targets: Tensor, errors: Tensor, delta: float = 1.0, eps: float = 1e-5, matrix: Matrix = BLOCKS
) -> tuple[Tensor, Tensor]:
    """(classification, localization) of aLRP Loss; `targets` dense, `errors` [P]."""
    c = candidates(logits, targets, delta)
    rank, errors = torch.empty_like(c.positives), errors.to(c.positives.dtype)
    (classification,) = with_update(logits, c, _alrp, errors.detach(), matrix, delta, eps, rank)
    no_worse = c.positives[None, :] >= c.positives[:, None]
    return classification, (no_worse.to(errors.dtype) @ errors / rank).mean()


def rank_sort_loss(
    logits: Tensor, targets: Tensor, delta: float = 0.5, eps: float = 1e-10, matrix: Matrix = BLOCKS
) -> tuple[Tensor, Tensor]:
    """(ranking, sorting) of Rank & Sort Loss; `targets` dense, with the IoU of the positives."""
    c = candidates(logits, targets, delta)
    iou = targets.reshape(-1)[c.positive_positions].to(c.positives.dtype)
    ranking, sorting = with_update(logits, c, _rank_sort, iou, matrix, delta, eps)
    return ranking, sorting


def _ap(positives: Tensor, negatives: Tensor, matrix: Matrix, delta: float) -> Update:
    num = positives.numel()
    # A positive itself counts as 1, where H(0) counted 1/2 or, for the hard step, 1.
    among_positives = matrix.count(positives, positives, delta) + (0.5 if delta > 0 else 0)
    above = matrix.count(positives, negatives, delta)
    precision = among_positives / (among_positives + above)
    order = positives.argsort()
    best = torch.empty_like(precision).index_copy_(0, order, precision[order].cummax(0).values)
    error = (1 - best) / num
    weights = torch.where(above > 0, error / above, 0)
    return (error.sum(),), -error, matrix.transport(positives, negatives, weights, delta)


def _alrp(
    positives: Tensor, negatives: Tensor, errors: Tensor, matrix: Matrix, delta: float, eps: float, rank: Tensor
) -> Update:
    num = positives.numel()
    among = step(positives[None, :] - positives[:, None], delta).fill_diagonal_(0)
    above = matrix.count(positives, negatives, delta)
    torch.add(among.sum(1) + 1, above, out=rank)
    error = torch.where(above > eps, (above + among @ errors) / rank / num, 0)
    weights = torch.where(above > eps, error / above, 0)
    return ((above / rank).mean(),), -error, matrix.transport(positives, negatives, weights, delta)


def _rank_sort(positives: Tensor, negatives: Tensor, iou: Tensor, matrix: Matrix, delta: float, eps: float) -> Update:
    num = positives.numel()
    among = step(positives[None, :] - positives[:, None], delta)
    above = matrix.count(positives, negatives, delta)
    ranking = above / (among.sum(1) + above)
    error = torch.where(above > eps, ranking / num, 0)
    weights = torch.where(above > eps, error / above, 0)
    sorting, of_positives = sorting_errors(among, iou, eps)
    of_negatives = matrix.transport(positives, negatives, weights, delta)
    return (ranking.mean(), sorting.mean()), of_positives / num - error, of_negatives

"""Bucketed ranking losses (Yavuz et al., ECCV 2024): negatives between two neighbouring positives act as one.

All scores are sorted; the negatives between consecutive positives form a bucket, represented by its mean score and its
size; positives then meet P + 1 buckets instead of N negatives, and the update of a bucket is shared equally by its
members. For delta = 0 no member of a bucket is ranked differently from its mean, so that is exact; for delta > 0 the
mean stands for scores on both sides of a kink of H, which is approximate. Its AP form has no interpolation.
"""

import torch
from torch import Tensor

from .common import Update, candidates, localization, step_, with_update


class Buckets:
    """Negatives between consecutive positives: their number, their mean score, and the way back to each of them."""

    def __init__(self, positives: Tensor, negatives: Tensor) -> None:
        ordered, self.order = negatives.sort()
        # Where a negative ties with a positive it belongs above it, as H(0) = 1 for delta = 0 has it.
        bounds = torch.searchsorted(ordered, positives.sort().values)
        bounds = torch.cat([bounds.new_zeros(1), bounds, bounds.new_tensor([negatives.numel()])])
        self.sizes = bounds.diff()
        self.means = torch.segment_reduce(ordered, "mean", lengths=self.sizes, initial=0)

    def to_negatives(self, of_buckets: Tensor) -> Tensor:
        """What every negative receives, in the order of the negatives, from what a member of each bucket receives."""
        shares = of_buckets.repeat_interleave(self.sizes)
        return torch.empty_like(shares).index_copy_(0, self.order, shares)


class SearchedBuckets(Buckets):
    """The same buckets without the sort of all scores: every negative looks its bucket up among the sorted positives.

    Not what was published: our improvement of it, so that the comparison is with the idea and not with a sort.
    """

    def __init__(self, positives: Tensor, negatives: Tensor) -> None:
        self.bucket = torch.bucketize(negatives, positives.sort().values, right=True)
        num_buckets = positives.numel() + 1
        self.sizes = torch.bincount(self.bucket, minlength=num_buckets)
        self.means = torch.bincount(self.bucket, negatives, minlength=num_buckets) / self.sizes.clamp(min=1)

    def to_negatives(self, of_buckets: Tensor) -> Tensor:
        return of_buckets[self.bucket]


def ap_loss(logits: Tensor, targets: Tensor, delta: float = 1.0, make_buckets: type[Buckets] = Buckets) -> Tensor:
    """AP Loss, not interpolated, approximate for delta > 0; `targets` dense."""
    return with_update(logits, candidates(logits, targets, delta), _ap, make_buckets, delta)[0]


def alrp_loss(
    logits: Tensor, targets: Tensor, errors: Tensor, delta: float = 1.0, eps: float = 1e-5,
    make_buckets: type[Buckets] = Buckets,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(classification, localization) of aLRP Loss, approximate for delta > 0; `targets` dense, `errors` [P]."""
    c = candidates(logits, targets, delta)
    rank, errors = torch.empty_like(c.positives), errors.to(c.positives.dtype)
    (classification,) = with_update(logits, c, _alrp, errors.detach(), make_buckets, delta, eps, rank)
    return classification, localization(errors, c.positives.argsort(), rank)


def rank_sort_loss(
    logits: Tensor, targets: Tensor, delta: float = 0.5, eps: float = 1e-10, make_buckets: type[Buckets] = Buckets
) -> tuple[Tensor, Tensor]:
    """(ranking, sorting) of Rank & Sort Loss, approximate for delta > 0; `targets` dense, with the IoU of positives."""
    c = candidates(logits, targets, delta)
    iou = targets.reshape(-1)[c.positive_positions].to(c.positives.dtype)
    ranking, sorting = with_update(logits, c, _rank_sort, iou, make_buckets, delta, eps)
    return ranking, sorting


def relations(positives: Tensor, negatives: Tensor, make_buckets: type[Buckets], delta: float):
    """(buckets, H(bucket - p_i) [P, P + 1], H(p_k - p_i) [P, P], number of negatives above [P])."""
    buckets = make_buckets(positives, negatives)
    above = step_(buckets.means[None, :] - positives[:, None], delta)
    among = step_(positives[None, :] - positives[:, None], delta)
    return buckets, above, among, above @ buckets.sizes.to(above.dtype)


def _ap(positives: Tensor, negatives: Tensor, make_buckets: type[Buckets], delta: float) -> Update:
    buckets, above, among, num_above = relations(positives, negatives, make_buckets, delta)
    among_positives = among.fill_diagonal_(1).sum(1)
    rank = among_positives + num_above
    num = positives.numel()
    error = num_above / rank
    return (error.mean(),), -error / num, buckets.to_negatives((1 / rank / num) @ above)


def _alrp(
    positives: Tensor, negatives: Tensor, errors: Tensor, make_buckets: type[Buckets], delta: float, eps: float,
    rank: Tensor,
) -> Update:  # fmt: skip
    buckets, above, among, num_above = relations(positives, negatives, make_buckets, delta)
    among.fill_diagonal_(0)
    torch.add(among.sum(1) + 1, num_above, out=rank)
    num = positives.numel()
    error = torch.where(num_above > eps, (num_above + among @ errors) / rank / num, 0)
    shares = torch.where(num_above > eps, error / num_above, 0)
    return ((num_above / rank).mean(),), -error, buckets.to_negatives(shares @ above)


def _rank_sort(
    positives: Tensor, negatives: Tensor, iou: Tensor, make_buckets: type[Buckets], delta: float, eps: float
) -> Update:
    buckets, above, among, num_above = relations(positives, negatives, make_buckets, delta)
    num = positives.numel()
    ranking = num_above / (among.sum(1) + num_above)
    error = torch.where(num_above > eps, ranking / num, 0)
    shares = torch.where(num_above > eps, error / num_above, 0)
    sorting, of_positives = sorting_errors(among, iou, eps)
    losses = (ranking.mean(), sorting.mean())
    return losses, of_positives / num - error, buckets.to_negatives(shares @ above)


def sorting_errors(among: Tensor, iou: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(sorting_i [P], |P| times its update of the positives [P]) from H(p_k - p_i) [P, P]."""
    in_order = among * (iou[None, :] >= iou[:, None])
    missorted = among - in_order
    sorting = among @ (1 - iou) / among.sum(1) - in_order @ (1 - iou) / in_order.sum(1)
    num_missorted = missorted.sum(1)
    moved = torch.where(num_missorted > eps, sorting, 0)
    shares = torch.where(num_missorted > eps, sorting / num_missorted, 0)
    return sorting, shares @ missorted - moved

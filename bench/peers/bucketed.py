"""Bucketed ranking losses (Yavuz et al., ECCV 2024): negatives between two neighbouring positives act as one.

All scores are sorted; the negatives between consecutive positives form a bucket, represented by its mean score and its
size; positives then meet P + 1 buckets instead of N negatives, and the update of a bucket is shared equally by its
members. For delta = 0 no member of a bucket is ranked differently from its mean, so that is exact; for delta > 0 the
mean stands for scores on both sides of a kink of H, which is approximate. Its AP form has no interpolation.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .ranking import Formula, Update, localization, step_


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


def formulas(make_buckets: type[Buckets]) -> dict[str, Formula]:
    def of(formula: Callable[..., Update]) -> Formula:
        def meet_buckets(positives: Tensor, negatives: Tensor, *values_and_delta: Any) -> Update:
            *values, delta = values_and_delta
            buckets = make_buckets(positives, negatives)
            above = step_(buckets.means[None, :] - positives[:, None], delta)
            among = step_(positives[None, :] - positives[:, None], delta)
            losses, update, shares = formula(positives, among, above @ buckets.sizes.to(above.dtype), *values)
            return losses, update, buckets.to_negatives(shares @ above)

        return meet_buckets

    return {formula.__name__: of(formula) for formula in (ap, alrp, rank_sort)}


# Each of positives [P], H(p_k - p_i) [P, P] and the number of negatives above [P]: the losses, the update of the
# positives, and what each of them adds to a negative above it.
def ap(positives: Tensor, among: Tensor, num_above: Tensor) -> Update:
    rank = among.fill_diagonal_(1).sum(1) + num_above
    error = num_above / rank
    return (error.mean(),), -error / positives.numel(), 1 / rank / positives.numel()


def alrp(positives: Tensor, among: Tensor, num_above: Tensor, errors: Tensor, eps: float = 1e-5) -> Update:
    rank = among.fill_diagonal_(0).sum(1) + 1 + num_above
    share = torch.where(num_above > eps, (num_above + among @ errors) / rank / positives.numel(), 0)
    losses = (num_above / rank).mean(), localization(positives, errors, rank)
    return losses, -share, torch.where(num_above > eps, share / num_above, 0)


def rank_sort(positives: Tensor, among: Tensor, num_above: Tensor, iou: Tensor, eps: float = 1e-10) -> Update:
    ranking = num_above / (among.sum(1) + num_above)
    share = torch.where(num_above > eps, ranking / positives.numel(), 0)
    in_order = among * (iou[None, :] >= iou[:, None])
    missorted = among - in_order
    sorting = among @ (1 - iou) / among.sum(1) - in_order @ (1 - iou) / in_order.sum(1)
    num_missorted = missorted.sum(1)
    moved_up = torch.where(num_missorted > eps, sorting, 0)
    moved_down = torch.where(num_missorted > eps, sorting / num_missorted, 0) @ missorted
    update = (moved_down - moved_up) / positives.numel() - share
    return (ranking.mean(), sorting.mean()), update, torch.where(num_above > eps, share / num_above, 0)

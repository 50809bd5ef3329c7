"""Count and transport of dense.py, exactly, in O((|P| + |N|) log |P|) time and without the matrix of pairs.

As functions of a score n, H(n - p_i) change their slope at p_i - delta and p_i + delta only. These 2|P| kinks, sorted,
bound 2|P| + 1 bins; a candidate lies in bin m if m kinks are at or below it, at some offset from the last of them.
(For delta = 0 the kinks are the p_i, where H jumps.)

    count      b_i = (area(p_i - delta) - area(p_i + delta)) / (2 delta)
               area(x) = integral over t > x of the mass of all n_j >= t; of it a bin holds the offsets of its own
               candidates and its width times the mass to its right
    transport  g is piecewise linear: within a bin, its value at the kink plus its slope times the offset

A bin longer than 2 delta lies inside no window [p_i - delta, p_i + delta], so it may be cut off there: then scores in
the thousands cost no digits.
"""

import torch
from torch import Tensor


def count(candidates: Tensor, positives: Tensor, delta: float, masses: Tensor | None = None) -> Tensor:
    """b_i [P] of candidates n [N] and positives p [P]; masses m [N], by default 1."""
    if positives.numel() == 0 or candidates.numel() == 0:
        return torch.zeros_like(positives)
    kinks, order = _sort_kinks(positives, delta)
    bins = _find_bins(candidates, kinks)
    above = _sum_from_right(_sum_in_bins(bins, candidates, masses, kinks))  # the mass of this bin and all to its right
    if delta == 0:
        above_kinks = above[1:]
    else:
        offsets = _offsets(candidates, kinks, bins, delta)
        area = _sum_in_bins(bins, candidates, offsets if masses is None else offsets * masses, kinks)[1:]
        area[:-1] += above[2:] * _widths(kinks, delta)
        above_kinks = _sum_from_right(area)
    by_kink = torch.empty_like(kinks).index_put_((order,), above_kinks)
    if delta > 0:
        lower, upper = by_kink.chunk(2)
        by_kink = (lower - upper) / (2 * delta)
    return by_kink + 0 * (candidates.sum() + positives.sum())  # comparisons hide a NaN


def transport(candidates: Tensor, positives: Tensor, weights: Tensor, delta: float) -> Tensor:
    """g_j [N] of candidates n [N], positives p [P] and their weights w [P]."""
    if positives.numel() == 0 or candidates.numel() == 0:
        return torch.zeros_like(candidates)
    kinks, order = _sort_kinks(positives, delta)
    bins = _find_bins(candidates, kinks)
    below = weights.new_zeros(1)  # left of the first kink
    if delta == 0:
        return torch.cat([below, weights[order].cumsum(0)]).index_select(0, bins) + 0 * candidates
    slopes = (torch.cat([weights, -weights]) / (2 * delta))[order].cumsum(0)
    values = torch.cat([below, below, (slopes[:-1] * _widths(kinks, delta)).cumsum(0)])
    offsets = _offsets(candidates, kinks, bins, delta)
    return values.index_select(0, bins) + torch.cat([below, slopes]).index_select(0, bins) * offsets


def _sort_kinks(positives: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    kinks = torch.cat([positives - delta, positives + delta]) if delta > 0 else positives
    return kinks.sort(stable=True)


def _find_bins(candidates: Tensor, kinks: Tensor) -> Tensor:
    """How many kinks are at or below each candidate, [N]; [] where that is one number, as early in training."""
    extremes = torch.stack(candidates.aminmax())
    lowest, highest = torch.bucketize(extremes, kinks, right=True)
    if (extremes + kinks[-1]).isnan().any():
        return torch.bucketize(candidates, kinks, right=True, out_int32=True)
    return lowest if lowest == highest else _look_up(candidates, kinks)


def _look_up(candidates: Tensor, kinks: Tensor) -> Tensor:
    """The bins by a grid of equal cells: the kinks in cells before its own, and those in it one by one.

    In a third of the time of a binary search, which is what is left where kinks are not spread.
    """
    num_cells = 8 * kinks.numel()
    scale = ((num_cells - 1) / (kinks[-1] - kinks[0])).nan_to_num(posinf=0)  # 0: all kinks in one place
    in_cell = torch.bincount(((kinks - kinks[0]) * scale).int(), minlength=num_cells)
    most = int(in_cell.max())
    if most > 8 or num_cells > candidates.numel():
        return torch.bucketize(candidates, kinks, right=True, out_int32=True)
    cells = ((candidates - kinks[0]) * scale).clamp_(0, num_cells - 1).int()
    bins = (in_cell.cumsum(0) - in_cell).int().index_select(0, cells)
    kinks = torch.cat([kinks, kinks.new_full((1,), torch.inf)])
    for _ in range(most):
        bins += kinks.index_select(0, bins) <= candidates
    return bins


def _offsets(candidates: Tensor, kinks: Tensor, bins: Tensor, delta: float) -> Tensor:
    left = torch.cat([kinks[:1], kinks])  # of bin 0 only to have one: it lies below all windows
    return (candidates - left.index_select(0, bins)).clamp_(0, 2 * delta)


def _widths(kinks: Tensor, delta: float) -> Tensor:
    return kinks.diff().clamp(max=2 * delta)


def _sum_in_bins(bins: Tensor, candidates: Tensor, values: Tensor | None, kinks: Tensor) -> Tensor:
    if bins.dim() == 0:
        total = candidates.numel() if values is None else values.sum()
        return kinks.new_zeros(kinks.numel() + 1).index_fill(0, bins, total)
    return torch.bincount(bins, values, minlength=kinks.numel() + 1).to(kinks.dtype)


def _sum_from_right(values: Tensor) -> Tensor:
    return values.flip(0).cumsum(0).flip(0)

"""The ranking engine: count and transport with the step H, exact, without a |P| x |N| matrix.

    H(x) = clip(x / (2 delta) + 1/2, 0, 1),   for delta = 0: H(x) = [x >= 0]
    count      b_i = sum_j m_j H(n_j - p_i)   how much (mass m_j, by default 1) is ranked above positive i
    transport  g_j = sum_i w_i H(n_j - p_i)   carries the error w_i of each positive to what is ranked above it

H is piecewise linear, with kinks where n_j = p_i - delta and n_j = p_i + delta. So b_i is an area,

    b_i = (area(p_i - delta) - area(p_i + delta)) / (2 delta),   area(x) = integral of sum_j m_j [n_j >= t] over t > x,

and g_j is a piecewise linear function of n_j. Between two neighbours among the 2|P| sorted kinks both need only the
bin's mass, sum of offsets, slope and value: one binary search per candidate, then prefix sums over 2|P| bins.

Accuracy: every prefix sum adds terms of one sign. Lengths are clamped at 2 delta, which changes nothing (an interval
longer than that lies inside no window [p_i - delta, p_i + delta], so it cancels in the difference) and bounds area by
its useful part: scores in the thousands lose no digits, and an infinite score counts as a very large one.
"""

import torch
from torch import Tensor


def step(x: Tensor, delta: float) -> Tensor:
    """H(x)."""
    if delta == 0:
        return (x >= 0).to(x.dtype)
    return (x / (2 * delta) + 0.5).clamp(0, 1)


def count(candidates: Tensor, positives: Tensor, delta: float, masses: Tensor | None = None) -> Tensor:
    """b_i = sum_j m_j H(n_j - p_i) for candidates n [M], positives p [P]; masses m [M], by default 1."""
    if positives.numel() == 0 or candidates.numel() == 0:
        return torch.zeros_like(positives)
    kinks = sorted_kinks(positives, delta)
    num_bins = kinks.numel() + 1
    bins = bucketize(candidates, kinks)
    mass = torch.bincount(bins, masses, minlength=num_bins).to(kinks.dtype)
    above = mass.flip(0).cumsum(0).flip(0)  # above[m]: the mass in bins m, m + 1, ...
    if delta == 0:
        # Comparisons hide NaN; these zeros are NaN where an input is.
        return above[torch.searchsorted(kinks, positives, right=True)] + 0 * positives + 0 * candidates.sum()

    offsets = offsets_from_kink(candidates, kinks, bins, delta)
    inside = torch.bincount(bins, offsets if masses is None else offsets * masses, minlength=num_bins)
    area = inside[1:].clone()
    area[:-1] += above[2:] * kinks.diff().clamp(max=2 * delta)
    area = area.flip(0).cumsum(0).flip(0)  # area[m]: to the right of kink m
    # A NaN is sorted behind the last kink, where the area is NaN by then.
    lower = torch.searchsorted(kinks, positives - delta).clamp(max=kinks.numel() - 1)
    upper = torch.searchsorted(kinks, positives + delta).clamp(max=kinks.numel() - 1)
    return (area[lower] - area[upper]) / (2 * delta)


def transport(candidates: Tensor, positives: Tensor, weights: Tensor, delta: float) -> Tensor:
    """g_j = sum_i w_i H(n_j - p_i) for candidates n [M], positives p [P] and their weights w [P]."""
    if positives.numel() == 0 or candidates.numel() == 0:
        return candidates.new_zeros(candidates.shape, dtype=positives.dtype)
    kinks = sorted_kinks(positives, delta)
    bins = bucketize(candidates, kinks)
    if delta == 0:
        steps = weights[positives.argsort(stable=True)]
        return torch.cat([steps.new_zeros(1), steps.cumsum(0)])[bins]

    order = torch.cat([positives - delta, positives + delta]).argsort(stable=True)
    slope = (torch.cat([weights, -weights]) / (2 * delta))[order].cumsum(0)
    value = (slope[:-1] * kinks.diff().clamp(max=2 * delta)).cumsum(0)
    zero = value.new_zeros(1)  # below the first kink there is no slope, and at it no value
    slope = torch.cat([zero, slope])
    value = torch.cat([zero, zero, value])
    return value[bins] + slope[bins] * offsets_from_kink(candidates, kinks, bins, delta)


def sorted_kinks(positives: Tensor, delta: float) -> Tensor:
    """The scores at which H(n - p_i) changes its slope, ascending: [2P], for delta = 0 [P]."""
    kinks = torch.cat([positives - delta, positives + delta]) if delta > 0 else positives
    return kinks.sort().values


def bucketize(candidates: Tensor, kinks: Tensor) -> Tensor:
    """How many kinks are at or below each candidate, int64 [M] in 0..len(kinks).

    A table over a uniform grid answers for every cell without a kink; only candidates that share a cell with a kink
    are searched for, which takes half the time of searching for all on a CPU. The map to cells is monotone, rounding
    included, so the table is exact.
    """
    num_cells = max(1024, min(2**16, 32 * kinks.numel()))
    if candidates.numel() < num_cells:  # a table would cost more than it saves
        return torch.bucketize(candidates.to(kinks.dtype), kinks, right=True)
    low, high = kinks[0].to(candidates.dtype), kinks[-1].to(candidates.dtype)
    scale = (num_cells - 3) / (high - low).clamp(min=torch.finfo(low.dtype).tiny)

    def cell(x: Tensor) -> Tensor:
        # The first and the last cell are for what lies outside the kinks; NaN counts as above them, as in a sort.
        return ((x - low) * scale + 1).clamp_(0, num_cells - 1).nan_to_num_(nan=num_cells - 1).int()

    kinks_in_cell = torch.bincount(cell(kinks.to(candidates.dtype)), minlength=num_cells)
    table = (kinks_in_cell.cumsum(0) - kinks_in_cell).masked_fill(kinks_in_cell > 0, -1)
    bins = table.index_select(0, cell(candidates))
    undecided = (bins < 0).nonzero().squeeze(1)
    bins[undecided] = torch.bucketize(candidates[undecided].to(kinks.dtype), kinks, right=True)
    return bins


def offsets_from_kink(candidates: Tensor, kinks: Tensor, bins: Tensor, delta: float) -> Tensor:
    """n_j minus the kink at the left of its bin, in [0, 2 delta]; 0 below the first kink."""
    left = torch.cat([kinks[:1], kinks]).index_select(0, bins)
    return (candidates - left).clamp_(0, 2 * delta)

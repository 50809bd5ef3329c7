"""Count and transport of dense.py, exactly, in O((|P| + |N|) log |P|) time and without the matrix of pairs.

As functions of a score n, H(n - p_i) change their slope at p_i - delta and p_i + delta only. These 2|P| kinks, sorted,
bound 2|P| + 1 bins; a candidate lies in bin m if m kinks are at or below it, at some offset from the last of them.
(For delta = 0 the kinks are the p_i, where H jumps.) Lengths are in units of 2 delta.

    count      b_i = area(p_i - delta) - area(p_i + delta)
               area(x) = integral over t > x of the mass of all n_j >= t; of it a bin holds the offsets of its own
               candidates and its width times the mass to its right
    transport  g is piecewise linear: within a bin, its value at the kink plus its slope times the offset

A bin longer than 2 delta lies inside no window [p_i - delta, p_i + delta], so it may be cut off there: then scores in
the thousands cost no digits. Kinks are rounded up: no score lies between a kink and its rounding, so bins are exact, and
with widths between kinks as they are, and what rounding has added to each, nothing is lost to rounding.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


class Kinks(NamedTuple):
    """The kinks of each scope in ascending order, [..., K]."""

    places: Tensor  # rounded up
    order: Tensor  # where it is among the p_i + delta of all i, then the p_i - delta
    widths: Tensor  # [..., K - 1], to the next kink, at most 1
    added: Tensor  # by rounding, at most 1


def count(
    candidates: Tensor, positives: Tensor, delta: float, masses: Tensor | None = None, kinks: Kinks | None = None
) -> Tensor:
    """b_i [..., P] of candidates n [..., N] and positives p [..., P]; masses m [..., N], by default 1."""
    if positives.numel() == 0 or candidates.numel() == 0:
        return torch.zeros_like(positives)
    kinks = kinks or sort_kinks(positives, delta)
    bins = _find_bins(candidates, kinks.places)
    inside = _sum_in_bins(bins, candidates, masses, kinks.places)
    above = _sum_from_right(inside)  # the mass of this bin and all to its right
    if delta == 0:
        above_kinks = above
    else:
        offsets = _offsets(candidates, kinks.places, bins, delta)
        area = _sum_in_bins(bins, candidates, offsets if masses is None else offsets * masses, kinks.places)
        area += inside * kinks.added
        area[..., :-1] += above[..., 1:] * kinks.widths
        above_kinks = _sum_from_right(area)
    by_kink = torch.empty_like(kinks.places).scatter_(-1, kinks.order, above_kinks)
    if delta > 0:
        upper, lower = by_kink.chunk(2, -1)
        by_kink = lower - upper
    return by_kink + 0 * (candidates.sum(-1, keepdim=True) + positives.sum(-1, keepdim=True))  # comparisons hide a NaN


def transport(
    candidates: Tensor, positives: Tensor, weights: Tensor, delta: float, kinks: Kinks | None = None
) -> Tensor:
    """g_j [..., N] of candidates n [..., N], positives p [..., P] and their weights w [..., P]."""
    if positives.numel() == 0 or candidates.numel() == 0:
        return torch.zeros_like(candidates)
    kinks = kinks or sort_kinks(positives, delta)
    bins = _find_bins(candidates, kinks.places)
    if delta == 0:
        return _look_up(weights.gather(-1, kinks.order).cumsum(-1), bins) + 0 * candidates
    slopes = torch.cat([-weights, weights], -1).gather(-1, kinks.order).cumsum(-1)
    values = slopes * kinks.added
    values[..., 1:] += (slopes[..., :-1] * kinks.widths).cumsum(-1)
    return _look_up(values, bins) + _look_up(slopes, bins) * _offsets(candidates, kinks.places, bins, delta)


def sort_kinks(positives: Tensor, delta: float) -> Kinks:
    """What `count` and `transport` need of positives p [..., P]."""
    if delta == 0:
        places, order = positives.sort(dim=-1, stable=True)
        return Kinks(places, order, places, places)
    sides = positives.new_tensor([[0.5], [-0.5]])  # upper kinks first, should one be rounded to the place of a lower one
    places, order = _add_up(positives[..., None, :], 2 * delta * sides).flatten(-2).sort(dim=-1, stable=True)
    is_lower = order >= positives.shape[-1]
    positives = positives.gather(-1, order - positives.shape[-1] * is_lower)
    sides = 0.5 - is_lower.to(positives.dtype)
    widths = positives.diff().div_(2 * delta).add_(sides.diff())
    added = (places - positives).div_(2 * delta).sub_(sides)
    return Kinks(places, order, widths.clamp_(max=1), added.clamp_(0, 1))


def _add_up(x: Tensor, y: Tensor) -> Tensor:
    """x + y, rounded up."""
    total = x + y
    back = total - x
    missing = (x - (total - back)) + (y - back)  # x + y - total, exactly (Knuth)
    return torch.where(missing > 0, total.nextafter(total.new_tensor(torch.inf)), total)


def _find_bins(candidates: Tensor, kinks: Tensor) -> Tensor:
    """How many kinks of its scope are at or below each candidate, [..., N]; [..., 1] where that is one number for all.

    The K + 1 bins of each scope are numbered on from those of the scope before.
    """
    num_kinks, num_scopes = kinks.shape[-1], kinks.numel() // kinks.shape[-1]
    extremes = torch.stack([candidates.amin(-1), candidates.amax(-1)], -1)
    bins, highest = torch.searchsorted(kinks, extremes, right=True).split(1, -1)
    if (extremes + kinks[..., -1:]).isnan().any() or (num_scopes > 1 and not torch.equal(bins, highest)):
        bins = torch.searchsorted(kinks, candidates, right=True, out_int32=True)
    elif not torch.equal(bins, highest):
        bins = _find_in_cells(candidates.view(-1), kinks.view(-1)).view(candidates.shape)
    if num_scopes > 1:
        bins = bins + (num_kinks + 1) * torch.arange(num_scopes, device=bins.device).to(bins).view(highest.shape)
    return bins


def _find_in_cells(candidates: Tensor, kinks: Tensor) -> Tensor:
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


def _look_up(values: Tensor, bins: Tensor) -> Tensor:
    """What values [..., K] have at the last kink at or below, 0 below all."""
    return pad(values, (1, 0)).view(-1).index_select(0, bins.reshape(-1)).view(bins.shape)


def _offsets(candidates: Tensor, kinks: Tensor, bins: Tensor, delta: float) -> Tensor:
    return (candidates - _look_up(kinks, bins)).div_(2 * delta).clamp_(0, 1)


def _sum_in_bins(bins: Tensor, candidates: Tensor, values: Tensor | None, kinks: Tensor) -> Tensor:
    """Sums [..., K] of the values, by default 1, of the candidates right of each kink and left of the next."""
    sums = pad(torch.zeros_like(kinks), (1, 0)).view(-1)
    if bins.shape[-1] == 1:
        sums[bins.view(-1)] = candidates.shape[-1] if values is None else values.sum(-1).view(-1)
    else:
        sums += torch.bincount(bins.view(-1), None if values is None else values.reshape(-1), minlength=sums.numel())
    return sums.view(*kinks.shape[:-1], -1)[..., 1:]


def _sum_from_right(values: Tensor) -> Tensor:
    return values.flip(-1).cumsum(-1).flip(-1)

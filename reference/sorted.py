"""Count and transport of dense.py, exactly, in O((|P| + |N|) log |P|) time and without the matrix of pairs.

As functions of a score n, H(n - p_i) change their slope at p_i - delta and p_i + delta only. These 2|P| kinks, sorted,
bound 2|P| + 1 bins; a candidate lies in bin m if m kinks are at or below it, at some offset from the last of them.
(For delta = 0 the kinks are the p_i, where H jumps.) Lengths are in units of 2 delta.

    count      b_i = area(p_i - delta) - area(p_i + delta)
               area(x) = integral over t > x of the mass of all n_j >= t; of it a bin holds the offsets of its own
               candidates and its width times the mass to its right
    transport  g is piecewise linear: within a bin, its value at the kink plus its slope times the offset

A bin longer than 2 delta lies inside no window [p_i - delta, p_i + delta], so it may be cut off there: then scores in
the thousands cost no digits. Kinks are rounded up, so that no score lies between one and its rounding: bins are exact,
and so is the rest, made from how far kinks lie apart before they are rounded, and what rounding adds to each.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

Kinks = tuple[Tensor, Tensor, Tensor, Tensor]


def count(
    candidates: Tensor, positives: Tensor, delta: float, masses: Tensor | None = None, of_positives: Kinks | None = None
) -> Tensor:
    """b_i [..., P] of candidates n [..., N] and positives p [..., P]; masses m [..., N], by default 1."""
    if positives.numel() == 0 or candidates.numel() == 0:
        return torch.zeros_like(positives)
    kinks, order, widths, added = of_positives or sort_kinks(positives, delta)
    bins = _find_bins(candidates, kinks)
    inside = _sum_in_bins(bins, candidates, masses, kinks)
    above = _sum_from_right(inside)  # the mass of this bin and all to its right
    if delta > 0:
        offsets = _offsets(candidates, kinks, bins, delta)
        offsets = offsets if masses is None else offsets * masses
        area = _sum_in_bins(bins, candidates, offsets, kinks) + inside * added
        area[..., :-1] += above[..., 1:] * widths
        above = _sum_from_right(area)
    above = torch.empty_like(kinks).scatter_(-1, order, above)
    if delta > 0:
        upper, lower = above.chunk(2, -1)
        above = lower - upper
    return above + 0 * (candidates.sum(-1, keepdim=True) + positives.sum(-1, keepdim=True))  # comparisons hide a NaN


def transport(
    candidates: Tensor, positives: Tensor, weights: Tensor, delta: float, of_positives: Kinks | None = None
) -> Tensor:
    """g_j [..., N] of candidates n [..., N], positives p [..., P] and their weights w [..., P]."""
    if positives.numel() == 0 or candidates.numel() == 0:
        return torch.zeros_like(candidates)
    kinks, order, widths, added = of_positives or sort_kinks(positives, delta)
    bins = _find_bins(candidates, kinks)
    if delta == 0:
        return _look_up(weights.gather(-1, order).cumsum(-1), bins) + 0 * candidates
    slopes = torch.cat([-weights, weights], -1).gather(-1, order).cumsum(-1)
    values = slopes * added
    values[..., 1:] += (slopes[..., :-1] * widths).cumsum(-1)
    return _look_up(values, bins) + _look_up(slopes, bins) * _offsets(candidates, kinks, bins, delta)


def sort_kinks(positives: Tensor, delta: float) -> Kinks:
    """(kinks [..., K], where each was before, widths to the next one, what rounding added); lengths are at most 1.

    Before they are sorted, all p_i + delta come first, then all p_i - delta: so they stay if rounded to one place.
    """
    if delta == 0:
        return (*positives.sort(dim=-1, stable=True), positives, positives)
    p, shifts = positives[..., None, :], positives.new_tensor([[delta], [-delta]])
    kinks = p + shifts
    back = kinks - p
    missing = (p - (kinks - back)) + (shifts - back)  # p + shifts - kinks, exactly (Knuth)
    kinks = torch.where(missing > 0, kinks.nextafter(kinks.new_tensor(torch.inf)), kinks)
    kinks, order = kinks.flatten(-2).sort(dim=-1, stable=True)
    is_lower = order >= positives.shape[-1]
    p, sides = positives.gather(-1, order - positives.shape[-1] * is_lower), 0.5 - is_lower.to(positives.dtype)
    widths = (p.diff() / (2 * delta) + sides.diff()).clamp_(max=1)
    return kinks, order, widths, ((kinks - p) / (2 * delta) - sides).clamp_(0, 1)


def _find_bins(candidates: Tensor, kinks: Tensor) -> Tensor:
    """How many kinks of its scope are at or below each candidate, [..., N]; [..., 1] where that is one number for all.

    The K + 1 bins of each scope are numbered on from those of the scope before.
    """
    scopes = torch.arange(kinks.numel() // kinks.shape[-1], device=kinks.device).view(*kinks.shape[:-1], 1)
    first = (kinks.shape[-1] + 1) * scopes
    extremes = torch.stack([candidates.amin(-1), candidates.amax(-1)], -1)
    lowest, highest = torch.searchsorted(kinks, extremes, right=True).split(1, -1)
    if (extremes + kinks[..., -1:]).isnan().any():
        return torch.searchsorted(kinks, candidates, right=True) + first
    return lowest + first if torch.equal(lowest, highest) else _search(candidates, kinks, scopes, first)


def _search(candidates: Tensor, kinks: Tensor, scopes: Tensor, first: Tensor) -> Tensor:
    """The bins by a grid of equal cells: the kinks in cells before its own, and those in it one by one.

    In a third of the time of a binary search, which is what is left where kinks are not spread.
    """
    num_cells, lowest = 8 * kinks.shape[-1], kinks[..., :1]
    scale = ((num_cells - 1) / (kinks[..., -1:] - lowest)).nan_to_num(posinf=0)  # 0: all kinks in one place
    first_cell = (num_cells * scopes).int()
    in_cell = torch.bincount(((kinks - lowest) * scale).int().add_(first_cell).view(-1), minlength=8 * kinks.numel())
    most = int(in_cell.max())
    if most > 8 or num_cells > candidates.shape[-1]:
        return torch.searchsorted(kinks, candidates, right=True, out_int32=True).add_(first)
    cells = ((candidates - lowest) * scale).clamp_(0, num_cells - 1).int().add_(first_cell)
    in_cell = in_cell.view(*kinks.shape[:-1], num_cells)
    bins = (in_cell.cumsum(-1) - in_cell + first).int().view(-1).index_select(0, cells.view(-1))
    kinks = pad(kinks, (0, 1), value=torch.inf).view(-1)
    for _ in range(most):
        bins += kinks.index_select(0, bins) <= candidates.reshape(-1)
    return bins.view(candidates.shape)


def _look_up(values: Tensor, bins: Tensor) -> Tensor:
    """What values [..., K] have at the last kink at or below, 0 below all."""
    return pad(values, (1, 0)).view(-1).index_select(0, bins.reshape(-1)).view(bins.shape)


def _offsets(candidates: Tensor, kinks: Tensor, bins: Tensor, delta: float) -> Tensor:
    lengths = candidates - _look_up(kinks, bins)
    lengths = lengths.mul_(0.5 / delta) if delta > 1e-300 else lengths.div_(2 * delta)  # a product is faster
    return lengths.clamp_(0, 1)


def _sum_in_bins(bins: Tensor, candidates: Tensor, values: Tensor | None, kinks: Tensor) -> Tensor:
    """Sums [..., K] of the values, by default 1, of the candidates right of each kink and left of the next."""
    sums = kinks.new_zeros((*kinks.shape[:-1], kinks.shape[-1] + 1)).view(-1)
    if bins.shape[-1] == 1:
        sums[bins.view(-1)] = candidates.shape[-1] if values is None else values.sum(-1).view(-1)
    else:
        sums += torch.bincount(bins.view(-1), None if values is None else values.reshape(-1), minlength=sums.numel())
    return sums.view(*kinks.shape[:-1], -1)[..., 1:]


def _sum_from_right(values: Tensor) -> Tensor:
    return values.flip(-1).cumsum(-1).flip(-1)

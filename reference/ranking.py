"""The ranking engine: count and transport with the step H, exact, without a |P| x |N| matrix.

    H(x) = clip(x / (2 delta) + 1/2, 0, 1),   for delta = 0: H(x) = [x >= 0]
    count      b_i = sum_j m_j H(n_j - p_i)   how much (mass m_j, by default 1) is ranked above positive i
    transport  g_j = sum_i w_i H(n_j - p_i)   carries the error w_i of each positive to what is ranked above it

H is piecewise linear, with kinks where n_j = p_i - delta and n_j = p_i + delta. So b_i is an area,

    b_i = (area(p_i - delta) - area(p_i + delta)) / (2 delta),   area(x) = integral of sum_j m_j [n_j >= t] over t > x,

and g_j is a piecewise linear function of n_j. Between two neighbours among the 2|P| sorted kinks both need only the
bin's mass, sum of offsets, slope and value: one search per candidate (kinks.py), then prefix sums over 2|P| bins.

Accuracy: every prefix sum adds terms of one sign. Lengths are clamped at 2 delta, which changes nothing (an interval
longer than that lies inside no window [p_i - delta, p_i + delta], so it cancels in the difference) and bounds area by
its useful part: scores in the thousands lose no digits, and an infinite score counts as a very large one.
"""

import torch
from torch import Tensor

from .kinks import Kinks, look_up


def step(x: Tensor, delta: float) -> Tensor:
    """H(x)."""
    if delta == 0:
        return (x >= 0).to(x.dtype)
    return (x / (2 * delta) + 0.5).clamp(0, 1)


class Count:
    """sum_j m_j H(n_j - p_i) for positives p [P], of candidates of `dtype` that come in parts."""

    def __init__(self, positives: Tensor, delta: float, dtype: torch.dtype) -> None:
        self.positives = positives
        self.kinks = Kinks(positives, delta, dtype)
        self.mass, self.inside = positives.new_zeros(2, self.kinks.num_bins)  # of bins; the latter times offsets
        self.nan = positives.new_zeros(())  # what comparisons hide, where delta = 0

    def add(self, candidates: Tensor, masses: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Candidates n [M], of masses m [M], by default 1; what `mask` [M] leaves out has none."""
        bins = self.kinks.bins(candidates)
        if isinstance(bins, int):
            self._add_to_one(bins, candidates, masses, mask)
            return
        if mask is not None:
            bins = bins * mask  # bin 0 is below all kinks, and of no account
        self.mass += torch.bincount(bins, masses, minlength=self.kinks.num_bins)
        if self.kinks.delta == 0:
            self.nan += torch.where(candidates.isnan() & (bins > 0), torch.nan, 0).sum()
            return
        offsets = self.kinks.offsets(candidates, bins).to(self.inside.dtype)
        offsets = offsets if masses is None else offsets * masses
        self.inside += torch.bincount(bins, offsets, minlength=self.kinks.num_bins)

    def _add_to_one(self, bin_: int, candidates: Tensor, masses: Tensor | None, mask: Tensor | None) -> None:
        masses = self.mass.new_ones(()).expand_as(candidates) if masses is None else masses
        masses = masses if mask is None else masses * mask
        offsets = self.kinks.offsets(candidates, bin_).to(self.inside.dtype)
        self.mass[bin_] += masses.sum()
        self.inside[bin_] += (offsets * masses).sum()

    def above(self) -> Tensor:
        """b_i."""
        kinks, positives = self.kinks, self.positives
        above = self.mass.flip(0).cumsum(0).flip(0)  # above[m]: the mass in bins m, m + 1, ...
        if kinks.delta == 0:
            return above[torch.searchsorted(kinks.scores, positives, right=True)] + 0 * positives + self.nan
        area = (self.inside + self.mass * kinks.missing)[1:]
        area[:-1] += above[2:] * kinks.widths()
        area = area.flip(0).cumsum(0).flip(0)  # area[m]: to the right of kink m
        # A NaN is sorted behind the last kink, where the area is NaN by then.
        last = kinks.scores.numel() - 1
        lower = torch.searchsorted(kinks.scores, positives - kinks.delta).clamp(max=last)
        upper = torch.searchsorted(kinks.scores, positives + kinks.delta).clamp(max=last)
        return (area[lower] - area[upper]) / (2 * kinks.delta)


def count(candidates: Tensor, positives: Tensor, delta: float, masses: Tensor | None = None) -> Tensor:
    """b_i = sum_j m_j H(n_j - p_i) for candidates n [M], positives p [P]; masses m [M], by default 1."""
    if positives.numel() == 0 or candidates.numel() == 0:
        return torch.zeros_like(positives)
    counted = Count(positives, delta, candidates.dtype)
    counted.add(candidates, masses)
    return counted.above()


class Transport:
    """n -> sum_i w_i H(n - p_i) of positives p [P] and their weights w [P], for candidates of `dtype`."""

    def __init__(self, positives: Tensor, weights: Tensor, delta: float, dtype: torch.dtype) -> None:
        self.kinks = kinks = Kinks(positives, delta, dtype)
        zero = weights.new_zeros(1)  # below the first kink there is no slope, and at it no value
        if delta == 0:
            self.value = torch.cat([zero, weights[kinks.order].cumsum(0)]).to(dtype)
            return
        slope = (torch.cat([weights, -weights]) / (2 * delta))[kinks.order].cumsum(0)
        value = torch.cat([zero, zero, (slope[:-1] * kinks.widths()).cumsum(0)])
        slope = torch.cat([zero, slope])
        value = value + slope * kinks.missing  # at `left` of every bin
        # Both in one number, which a candidate looks up in one go.
        self.line = torch.complex(value.to(dtype), slope.to(dtype))

    def __call__(self, candidates: Tensor) -> Tensor:
        """g_j of candidates n [M], in their dtype."""
        bins = self.kinks.bins(candidates)
        if self.kinks.delta == 0:
            return look_up(self.value, bins).expand_as(candidates)
        line = look_up(self.line, bins)
        return torch.addcmul(line.real, line.imag, self.kinks.offsets(candidates, bins))


def transport(candidates: Tensor, positives: Tensor, weights: Tensor, delta: float) -> Tensor:
    """g_j = sum_i w_i H(n_j - p_i) for candidates n [M], positives p [P] and their weights w [P]."""
    if positives.numel() == 0 or candidates.numel() == 0:
        return torch.zeros_like(candidates)
    return Transport(positives, weights, delta, candidates.dtype)(candidates)

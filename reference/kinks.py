"""The kinks of the step H, and the bins between them into which scores fall.

Seen as functions of a score n, H(n - p_i) change their slope at p_i - delta and p_i + delta: 2|P| kinks, |P| where
delta = 0. Sorted they bound 2|P| + 1 bins; bin m lies right of m kinks. Within a bin everything is a straight line of
the offset from the kink at its left, so one search per score is all that a sum over all positives takes.
"""

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class _Grid(NamedTuple):
    """Cells of equal width over the kinks; the first and the last are for what lies outside, NaN above as in a sort."""

    low: Tensor
    scale: Tensor
    last: int

    def cell(self, x: Tensor) -> Tensor:
        """Monotone in x, rounding included."""
        return x.sub(self.low).mul_(self.scale).add_(1).clamp_(0, self.last).nan_to_num_(nan=self.last).int()


class Kinks:
    """Sorted kinks of positives p [P], for scores of `dtype`."""

    def __init__(self, positives: Tensor, delta: float, dtype: torch.dtype) -> None:
        kinks = torch.cat([positives - delta, positives + delta]) if delta > 0 else positives
        self.delta = delta
        self.scores, self.order = kinks.sort(stable=True)
        self.num_bins = kinks.numel() + 1
        left = torch.cat([self.scores[:1], self.scores])
        self.left = left.to(dtype)  # the kink at the left of every bin; that of bin 0 only bounds it
        # What an offset from `left` lacks of one from the kink itself, which is not rounded to dtype.
        self.missing = self.left.to(left.dtype) - left

    def bins(self, scores: Tensor) -> Tensor | int:
        """How many kinks are at or below each score, int32 [M]; one number where that is the same for all of them.

        Such are most blocks at the start of training, when the scores lie in a narrow band. Otherwise a table over a
        uniform grid answers for every cell without a kink, and only scores that share a cell with a kink are searched
        for, which takes half the time of searching for all on a CPU. The map to cells is monotone, so the table is
        exact.
        """
        if scores.numel() < self._num_cells:  # a table would cost more than it saves
            return self._search(scores)
        extremes = torch.stack(scores.aminmax())
        lowest, highest = self._search(extremes).tolist()
        if lowest == highest and not extremes.isnan().any():
            return lowest
        grid, table = self._table
        bins = table.index_select(0, grid.cell(scores))
        undecided = (bins < 0).nonzero().squeeze(1)
        bins[undecided] = self._search(scores[undecided])
        return bins

    def offsets(self, scores: Tensor, bins: Tensor | int) -> Tensor:
        """Scores minus the `left` of their bin, in [0, 2 delta]; 0 below the first kink."""
        return scores.sub(look_up(self.left, bins)).clamp_(0, 2 * self.delta)

    def widths(self) -> Tensor:
        """Of the bins between two kinks, at most 2 delta."""
        return self.scores.diff().clamp(max=2 * self.delta)

    def _search(self, scores: Tensor) -> Tensor:
        return torch.bucketize(scores.to(self.scores.dtype), self.scores, right=True, out_int32=True)

    @property
    def _num_cells(self) -> int:
        return max(1024, min(2**16, 32 * self.scores.numel()))

    @cached_property
    def _table(self) -> tuple[_Grid, Tensor]:
        """The bin of every cell of a grid, -1 for cells that hold a kink."""
        kinks = self.scores.to(self.left.dtype)
        width = (kinks[-1] - kinks[0]).clamp(min=torch.finfo(kinks.dtype).tiny)
        grid = _Grid(kinks[0], (self._num_cells - 3) / width, self._num_cells - 1)
        held = torch.bincount(grid.cell(kinks), minlength=self._num_cells)
        return grid, (held.cumsum(0) - held).masked_fill(held > 0, -1).int()


def look_up(values: Tensor, bins: Tensor | int) -> Tensor:
    """The value of each score's bin."""
    return values[bins] if isinstance(bins, int) else values.index_select(0, bins)

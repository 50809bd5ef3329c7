"""The kinks of H over the sorted positives, and a table that finds the bin of a score among them.

Seen as functions of a score n, H(n - p_i) change their slope at p_i - delta and p_i + delta: 2 |P| kinks of a scope,
which bound 2 |P| + 1 bins; bin m lies right of m kinks. (delta = 0: |P| kinks, at the p_i.)

Lower and upper kinks are each in ascending order already, so they merge by search: before the lower kink of place r
come r lower ones and every p_k + delta < p_r - delta; before its upper one, r upper ones and every p_k - delta <= p_r +
delta.
Kinks are rounded up to the dtype of the scores: no score then lies between a kink and its rounding, and what the
rounding adds to b or takes from a gradient can be put right exactly.

The table has CELLS cells of equal width for each positive, from the first to the last kink of the scope; it says of
every cell how many kinks lie in cells before it, and how many in it, in one integer: a look-up is bound by the memory
it touches. The cell of a score is a monotone function of it, rounding included, so a bin is one look-up and a search
among the kinks of that cell.

    symbol              meaning
    lines [3, 2 P]      kinks, ascending, those of scope s from 2 offsets[s] on; value and slope there: finish.py
    places [2, P]       where the lower and the upper kink of each positive stand among the kinks of its scope
    cells [CELLS P]     before << IN_CELL_BITS | in it; those of scope s from CELLS offsets[s] on

    owner of outputs    program t: what belongs to positives t * TILE and the following
    accumulation        none; kinks are computed in float64 and rounded once
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import number
from ..candidates import TRITON_DTYPE
from ..grid import cdiv
from ..listing import Positives
from .positives import load_tile, scope_steps

TILE = 8
CELLS = 16  # a positive; estimated from counts, not yet measured on a GPU
IN_CELL_BITS = tl.constexpr(4)  # which leaves 28 for 2 |P|
MANY = tl.constexpr(15)  # kinks in a cell, or more: searched to the last of the scope


class Kinks(NamedTuple):
    """See the symbol table."""

    lines: Tensor
    places: Tensor
    cells: Tensor


@triton.jit
def make_kink(p, shift, DTYPE: tl.constexpr):
    """p + shift, rounded up to DTYPE; of a NaN infinity, which comes last."""
    p = p.to(tl.float64)
    nearest = p + shift
    added = nearest - p
    missing = (p - (nearest - added)) + (shift - added)  # nearest + missing is p + shift, exactly
    rounded = nearest.to(DTYPE)
    bits = rounded.to(tl.int32 if DTYPE == tl.float32 else tl.int64, bitcast=True)
    above = tl.where(rounded > 0, bits + 1, tl.where(rounded < 0, bits - 1, 1)).to(DTYPE, bitcast=True)
    is_below = (rounded.to(tl.float64) < nearest) | ((rounded.to(tl.float64) == nearest) & (missing > 0))
    rounded = tl.where(is_below, above, rounded)
    return tl.where(rounded != rounded, float("inf"), rounded)


@triton.jit
def cell_of(x, lowest, scale, num_cells):
    """The cell of a score x; monotone in x. Without a number, as where all kinks are infinite, the first."""
    cell = (x - lowest) * scale
    return tl.minimum(tl.where(cell > 0, cell, 0), (num_cells - 1).to(x.dtype)).to(tl.int32)


@triton.jit
def cell_scale(lowest, highest, num_cells):
    """Cells per unit of score."""
    return tl.where(highest > lowest, num_cells.to(lowest.dtype) / (highest - lowest), 0.0)


@triton.jit
def _load_kink(sorted_ptr, place, num, shift, DTYPE: tl.constexpr):
    """The kink p + shift of a place below num."""
    return make_kink(tl.load(sorted_ptr + place, mask=place < num, other=0), shift, DTYPE)


@triton.jit(do_not_specialize=["capacity", "num_scopes", "num_scope_steps", "num_steps"])
def _kinks_kernel(
    sorted_ptr,
    offsets_ptr,
    kinks_ptr,
    places_ptr,
    cells_ptr,
    capacity,
    num_scopes,
    num_scope_steps,
    num_steps,
    delta: tl.float64,
    TILE: tl.constexpr,
    CELLS: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Put the kinks of a tile of positives in their places, and fill its cells."""
    delta = number(delta, tl.float64)
    at, there, first, last = load_tile(offsets_ptr, num_scopes, num_scope_steps, TILE)
    num, place = last - first, at - first
    p = tl.load(sorted_ptr + at, mask=there, other=0)
    lower, upper = make_kink(p, -delta, COMPUTE), make_kink(p, delta, COMPUTE)
    lowest = make_kink(tl.load(sorted_ptr + first, mask=there, other=0), -delta, COMPUTE)
    highest = make_kink(tl.load(sorted_ptr + last - 1, mask=there, other=0), delta, COMPUTE)
    num_cells = num * CELLS
    scale = cell_scale(lowest, highest, num_cells)[:, None]
    # Where a cell begins, and where it ends.
    bound = place[:, None] * CELLS + (tl.arange(0, 2 * CELLS) // 2 + tl.arange(0, 2 * CELLS) % 2)[None, :]
    in_scope = sorted_ptr + first
    # Searches take the same steps side by side: each waits for memory, and now all at once.
    uppers_before = tl.zeros([TILE], tl.int32)  # the lower kink
    lowers_before = tl.zeros([TILE], tl.int32)  # the upper kink, or at it
    lowers_below = tl.zeros([TILE, 2 * CELLS], tl.int32)  # in cells below the bound
    uppers_below = tl.zeros([TILE, 2 * CELLS], tl.int32)
    for search_step in range(num_steps):
        stride = 1 << (num_steps - 1 - search_step)
        trial = lowers_below + stride
        y = _load_kink(in_scope[:, None], trial - 1, num[:, None], -delta, COMPUTE)
        y_cell = cell_of(y, lowest[:, None], scale, num_cells[:, None])
        lowers_below = tl.where((trial <= num[:, None]) & (y_cell < bound), trial, lowers_below)
        if not HARD:
            trial = uppers_below + stride
            y = _load_kink(in_scope[:, None], trial - 1, num[:, None], delta, COMPUTE)
            y_cell = cell_of(y, lowest[:, None], scale, num_cells[:, None])
            uppers_below = tl.where((trial <= num[:, None]) & (y_cell < bound), trial, uppers_below)
            trial = uppers_before + stride
            y = _load_kink(in_scope, trial - 1, num, delta, COMPUTE)
            uppers_before = tl.where((trial <= num) & (y < lower), trial, uppers_before)
            trial = lowers_before + stride
            y = _load_kink(in_scope, trial - 1, num, -delta, COMPUTE)
            lowers_before = tl.where((trial <= num) & (y <= upper), trial, lowers_before)
    tl.store(kinks_ptr + 2 * first + place + uppers_before, lower, mask=there)
    tl.store(places_ptr + at, place + uppers_before, mask=there)
    if not HARD:
        tl.store(kinks_ptr + 2 * first + place + lowers_before, upper, mask=there)
        tl.store(places_ptr + capacity + at, place + lowers_before, mask=there)
    before, until = tl.split(tl.reshape(lowers_below + uppers_below, [TILE, CELLS, 2]))
    packed = (before << IN_CELL_BITS) | tl.minimum(until - before, MANY)
    cell = CELLS * at.to(tl.int64)[:, None] + tl.arange(0, CELLS)[None, :]
    tl.store(cells_ptr + cell, packed, mask=there[:, None])


@triton.jit
def find_bins(n, searched, kinks_ptr, cells_ptr, num_kinks, num_cells, lowest, scale):
    """How many kinks of the scope are at or below each of the scores n; 0 where `searched` is false."""
    cell = cell_of(n, lowest, scale, num_cells)
    packed = tl.load(cells_ptr + cell, mask=searched, other=0)
    low, in_cell = packed >> IN_CELL_BITS, packed & MANY
    high = tl.where(in_cell < MANY, low + in_cell, num_kinks)
    # The largest gap between low and high halves with every step.
    gap = tl.max(high - low)
    while gap > 0:
        middle = (low + high) >> 1
        reachable = low < high
        at_or_below = tl.load(kinks_ptr + middle, mask=reachable, other=0) <= n
        low = tl.where(reachable & at_or_below, middle + 1, low)
        high = tl.where(reachable & (at_or_below == 0), middle, high)
        gap = gap >> 1
    return low


def make_kinks(positives: Positives, delta: float, max_positives: int | None) -> Kinks:
    """Kinks of positives that are in ascending order; 0 behind the last positive of a bound."""
    scores, offsets = positives.scores, positives.offsets
    capacity, device = scores.numel(), scores.device
    allocate = torch.empty if max_positives is None else torch.zeros
    kinks = Kinks(
        lines=allocate(3, 2 * capacity, dtype=scores.dtype, device=device),
        places=torch.empty(2, capacity, dtype=torch.int32, device=device),
        cells=allocate(CELLS * capacity, dtype=torch.int32, device=device),
    )
    if capacity > 0:
        _kinks_kernel[cdiv(capacity, TILE),](
            scores,
            offsets,
            *kinks,
            capacity=capacity,
            num_scopes=offsets.numel() - 1,
            num_scope_steps=scope_steps(offsets),
            num_steps=capacity.bit_length(),
            delta=delta,
            TILE=TILE,
            CELLS=CELLS,
            HARD=delta == 0,
            COMPUTE=TRITON_DTYPE[scores.dtype],
        )
    return kinks

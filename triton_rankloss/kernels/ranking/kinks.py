"""The kinks of H over the sorted positives, and a table that finds the bin of a score among them.

Seen as functions of a score n, H(n - p_i) change their slope at p_i - delta and p_i + delta: 2 |P| kinks of a scope,
which bound 2 |P| + 1 bins; bin m lies right of m kinks. (delta = 0: |P| kinks, at the p_i.)

Lower and upper kinks are each in ascending order already, so they merge by search: before the lower kink of place r
come r lower ones and every p_k + delta < p_r - delta; before its upper one, r upper ones and every p_k - delta <= p_r +
delta.
Kinks are rounded up to the dtype of the scores: no score then lies between a kink and its rounding, and what the
rounding adds to b or takes from a gradient can be put right exactly.

The table has CELLS cells of equal width for each positive, from the first to the last kink of the scope; it says of
every cell how many kinks lie in cells before it. The cell of a score is a monotone function of it, rounding included,
so a bin is one look-up and a search among the kinks of that cell.

    symbol              meaning
    lines [3, 2 P]      kinks, ascending, those of scope s from 2 offsets[s] on; value and slope there: finish.py
    places [2, P]       where the lower and the upper kink of each positive stand among the kinks of its scope
    cells [CELLS P]     of scope s from CELLS offsets[s] on

    owner of outputs    program t: what belongs to positives t * TILE and the following
    accumulation        none; kinks are computed in float64 and rounded once
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import number
from ..candidates import TRITON_DTYPE, Positives
from .positives import load_tile, scope_steps

TILE = 32
CELLS = 16  # a positive; estimated from counts, not yet measured on a GPU


class Kinks(NamedTuple):
    """See the symbol table."""

    lines: Tensor
    places: Tensor
    cells: Tensor


@triton.jit
def make_kink(p, shift, DTYPE: tl.constexpr):
    """p + shift, rounded up to DTYPE; of a NaN infinity, which comes last."""
    exact = p.to(tl.float64) + shift
    rounded = exact.to(DTYPE)
    if DTYPE == tl.float32:
        bits = rounded.to(tl.int32, bitcast=True)
        above = tl.where(rounded > 0, bits + 1, tl.where(rounded < 0, bits - 1, 1)).to(DTYPE, bitcast=True)
        rounded = tl.where(rounded.to(tl.float64) < exact, above, rounded)
    return tl.where(rounded != rounded, float("inf"), rounded)


@triton.jit
def cell_of(x, lowest, scale, num_cells):
    """The cell of a score x; monotone in x."""
    return tl.minimum(tl.maximum((x - lowest) * scale, 0.0), (num_cells - 1).to(x.dtype)).to(tl.int32)


@triton.jit
def cell_scale(lowest, highest, num_cells):
    """Cells per unit of score."""
    return tl.where(highest > lowest, num_cells.to(lowest.dtype) / (highest - lowest), 0.0)


@triton.jit
def _search(sorted_ptr, first, num, shift, x, num_steps, OR_EQUAL: tl.constexpr, DTYPE: tl.constexpr):
    """How many of the kinks p_k + shift, k < num, are below x, or with OR_EQUAL at or below it."""
    found = num * 0
    for search_step in range(num_steps):
        trial = found + (1 << (num_steps - 1 - search_step))
        reachable = trial <= num
        y = make_kink(tl.load(sorted_ptr + first + trial - 1, mask=reachable, other=0), shift, DTYPE)
        below = (y <= x) if OR_EQUAL else (y < x)
        found = tl.where(reachable & below, trial, found)
    return found


@triton.jit
def _search_cells(sorted_ptr, first, num, shift, cell, lowest, scale, num_cells, num_steps, DTYPE: tl.constexpr):
    """How many of the kinks p_k + shift, k < num, lie in cells before `cell`."""
    found = num * 0 + cell * 0
    for search_step in range(num_steps):
        trial = found + (1 << (num_steps - 1 - search_step))
        reachable = trial <= num
        y = make_kink(tl.load(sorted_ptr + first + trial - 1, mask=reachable, other=0), shift, DTYPE)
        found = tl.where(reachable & (cell_of(y, lowest, scale, num_cells) < cell), trial, found)
    return found


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
    num, place = (last - first).to(tl.int32), (at - first).to(tl.int32)
    p = tl.load(sorted_ptr + at, mask=there, other=0)
    lower = make_kink(p, -delta, COMPUTE)
    lowest = make_kink(tl.load(sorted_ptr + first, mask=there, other=0), -delta, COMPUTE)
    highest = make_kink(tl.load(sorted_ptr + last - 1, mask=there, other=0), delta, COMPUTE)
    num_cells = num * CELLS
    scale = cell_scale(lowest, highest, num_cells)
    cell = place[:, None] * CELLS + tl.arange(0, CELLS)[None, :]
    before = _search_cells(
        sorted_ptr,
        first[:, None],
        num[:, None],
        -delta,
        cell,
        lowest[:, None],
        scale[:, None],
        num_cells[:, None],
        num_steps,
        COMPUTE,
    )
    if HARD:
        tl.store(kinks_ptr + 2 * first + place, lower, mask=there)
        tl.store(places_ptr + at, place, mask=there)
    else:
        upper = make_kink(p, delta, COMPUTE)
        lower_place = place + _search(sorted_ptr, first, num, delta, lower, num_steps, False, COMPUTE)
        upper_place = place + _search(sorted_ptr, first, num, -delta, upper, num_steps, True, COMPUTE)
        tl.store(kinks_ptr + 2 * first + lower_place, lower, mask=there)
        tl.store(kinks_ptr + 2 * first + upper_place, upper, mask=there)
        tl.store(places_ptr + at, lower_place, mask=there)
        tl.store(places_ptr + capacity + at, upper_place, mask=there)
        before += _search_cells(
            sorted_ptr,
            first[:, None],
            num[:, None],
            delta,
            cell,
            lowest[:, None],
            scale[:, None],
            num_cells[:, None],
            num_steps,
            COMPUTE,
        )
    tl.store(cells_ptr + CELLS * first[:, None] + cell, before, mask=there[:, None])


@triton.jit
def find_bins(n, searched, kinks_ptr, cells_ptr, num_kinks, num_cells, lowest, scale):
    """How many kinks of the scope are at or below each of the scores n; 0 where `searched` is false."""
    cell = cell_of(n, lowest, scale, num_cells)
    low = tl.load(cells_ptr + cell, mask=searched, other=0)
    high = tl.load(cells_ptr + cell + 1, mask=searched & (cell + 1 < num_cells), other=0)
    high = tl.where(searched & (cell + 1 == num_cells), num_kinks, high)
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


def make_kinks(positives: Positives, delta: float) -> Kinks:
    """Kinks of positives that are in ascending order."""
    scores, offsets = positives.scores, positives.offsets
    capacity, device = scores.numel(), scores.device
    kinks = Kinks(
        lines=torch.empty(3, 2 * capacity, dtype=scores.dtype, device=device),
        places=torch.empty(2, capacity, dtype=torch.int32, device=device),
        cells=torch.empty(CELLS * capacity, dtype=torch.int32, device=device),
    )
    if capacity > 0:
        _kinks_kernel[triton.cdiv(capacity, TILE),](
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

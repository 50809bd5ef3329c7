"""Count by bins, b_i = sum_j H(n_j - p_i): every negative is added to the bin it falls into, once, whatever |P| is.

    area(x) = integral over t > x of the number of n_j >= t
    b_i = (area(p_i - delta) - area(p_i + delta)) / (2 delta),   for delta = 0: the number of n_j >= p_i

Bins lie between the kinks of kinks.py. The area right of kink m is a sum over the bins right of it: their offsets (how
far each of their negatives is from the kink at its left) and their width times the number of negatives further right.
An offset is only needed up to 2 delta: beyond, a bin lies in no window [p_i - delta, p_i + delta] that it matters to.

Everything is an integer: offsets and widths are multiples of a unit, sums are taken modulo 2^64, and the differences
that make b are exact. So neither the order of programs nor their number nor the device matters.

Negatives between the last lower and the first upper kink, as all are at the start of training, share one bin: a program
keeps their number and offsets in registers. Any other relevant negative is one atomic addition, of its number (shifted
by COUNT_SHIFT) and its offset in one 64-bit integer; in float64, of two. Bin 0 lies left of all kinks, where nothing is
counted: it is for NaN, which no comparison puts into another.

    symbol               meaning
    unit                 2^-fraction_bits times the power of two at or above 2 delta
    copies [C, 2 P + S]  bins, of scope s from 2 offsets[s] + s on; so many copies that the sums of none overflow
    totals [2, 2 P + S]  number and offsets of each bin, over the copies
    numbers, areas [2P]  right of each kink: how many negatives, and the area, in units

    owner of outputs     _bins_kernel: atomic additions of integers;  _sum_kernel t: totals of tile t of the bins;
                         _above_kernel s: numbers, areas and b of scope s
    accumulation         int64
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import number
from ..blocks import index_type, load_candidates, scope_arguments
from ..candidates import TRITON_DTYPE, Scopes
from ..grid import cdiv
from ..listing import Positives
from .kinks import CELLS, Kinks, cell_scale, find_bins

# Not yet measured on a GPU; from instruction counts.
BLOCK = 256  # one warp, eight logits a lane
MAX_BLOCKS = 64  # of a program, whose negatives of the middle bin are one addition
MIN_PROGRAMS = 4096  # as many warps, which the multiprocessors of today's GPUs hold twice
MAX_IN_COPY = 2**17  # negatives: with 28 fractional bits and a clip below 2 units their offsets fit below COUNT_SHIFT
COUNT_SHIFT = tl.constexpr(46)
COUNT_MASK = tl.constexpr(2**18 - 1)
OFFSET_MASK = tl.constexpr(2**46 - 1)
CLIP = 2 - 2**-20  # units of 2 delta and more: the longest window that has a score inside, rounding included
SUM_BLOCK, SUM_ROWS = 32, 64
SCAN_BLOCK, SCAN_WARPS = 2048, 16


SIZES = ["num_candidates", "num_targets", "programs_in_scope", "programs_in_copy", "blocks_at_once", "copy_stride"]


@triton.jit(do_not_specialize=SIZES)
def _bins_kernel(
    logits_ptr,
    targets_ptr,
    offsets_ptr,
    kinks_ptr,
    cells_ptr,
    copies_ptr,
    num_candidates,
    num_targets,
    programs_in_scope,
    programs_in_copy,
    blocks_at_once,
    copy_stride,
    per_unit: tl.float64,
    clip: tl.float64,
    INDEX: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    CELLS: tl.constexpr,
    HARD: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Add the negatives of some blocks of a scope to its bins."""
    scope = (tl.program_id(0) // programs_in_scope).to(tl.int64)
    program = tl.program_id(0) - scope * programs_in_scope
    per_unit, clip = number(per_unit, COMPUTE), number(clip, COMPUTE)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    num_positives = (last - first).to(tl.int32)
    if num_positives > 0:
        num_kinks = num_positives if HARD else 2 * num_positives
        num_cells = num_positives * CELLS
        logits_ptr += tl.multiple_of(scope * num_candidates, ALIGNMENT)
        targets_ptr += scope * num_targets
        kinks_ptr += 2 * first
        cells_ptr += CELLS * first
        bins_ptr = copies_ptr + (program // programs_in_copy).to(tl.int64) * copy_stride + 2 * first + scope
        lowest, highest = tl.load(kinks_ptr), tl.load(kinks_ptr + num_kinks - 1)
        scale = cell_scale(lowest, highest, num_cells)
        # Where not all lower kinks come first, this is some other bin between two neighbours, and no worse for that.
        middle = num_positives
        middle_begin = tl.load(kinks_ptr + middle - 1)
        middle_end = tl.load(kinks_ptr + middle, mask=middle < num_kinks, other=float("inf"))

        lanes = tl.arange(0, BLOCK)
        num_whole = 0  # blocks that are in the middle, as nearly all at the start of training
        num_in_middle = tl.zeros([BLOCK // 4], tl.int32)  # in other blocks
        sum_in_middle = tl.zeros([BLOCK // 4], tl.int64)
        first_block = program * blocks_at_once
        for block in range(first_block, tl.minimum(first_block + blocks_at_once, (num_candidates - 1) // BLOCK + 1)):
            start = tl.cast(block, INDEX) * BLOCK
            # Neighbours in different lanes, as atomic additions have them: nothing is exchanged before those.
            n, negative, _ = load_candidates(
                logits_ptr, targets_ptr, start, num_candidates, BLOCK, NUM_CLASSES, LABELS, COMPUTE, IN_LANE=1
            )
            in_middle = negative & (n >= middle_begin) & (n < middle_end)
            if tl.max(tl.where(in_middle, -1, lanes)) < 0:
                num_whole += 1
                if not HARD:
                    sum_in_middle += _sum_of_four(_offset(n, middle_begin, per_unit, clip)).to(tl.int64)
            else:
                num_in_middle += _sum_of_four(in_middle.to(tl.int32))
                if not HARD:
                    to_middle = tl.where(in_middle, _offset(n, middle_begin, per_unit, clip), 0)
                    sum_in_middle += _sum_of_four(to_middle).to(tl.int64)
                elsewhere = negative & ((n < lowest) == 0) & (in_middle == 0)
                if tl.max(tl.where(elsewhere, lanes, -1)) >= 0:
                    bins = find_bins(n, elsewhere, kinks_ptr, cells_ptr, num_kinks, num_cells, lowest, scale)
                    offset = tl.zeros([BLOCK], tl.int64)
                    if not HARD:
                        left = tl.load(kinks_ptr + bins - 1, mask=elsewhere & (bins > 0), other=0)
                        offset = tl.where(bins > 0, _offset(n, left, per_unit, clip), 0).to(tl.int64)
                    _add(bins_ptr + bins, tl.full([BLOCK], 1, tl.int64), offset, elsewhere, copy_stride, HARD, COMPUTE)
        num_there = tl.sum(num_in_middle).to(tl.int64) + num_whole * BLOCK
        _add(bins_ptr + middle, num_there, tl.sum(sum_in_middle), num_there > 0, copy_stride, HARD, COMPUTE)


@triton.jit
def _sum_of_four(values):
    """Sums of every four in a lane; of offsets in float32, below 2^29 each, still an int32: fewer instructions.

    Here neighbours lie in different lanes, so that the four are a quarter of the block apart; see blocks.sum_fours.
    """
    return tl.sum(tl.reshape(values, [4, values.shape[0] // 4]), 0)


@triton.jit
def _offset(n, left, per_unit, clip):
    """n - left in units, rounded; per_unit is a power of two, so that nothing but the difference is rounded before."""
    INTEGER: tl.constexpr = tl.int32 if n.dtype == tl.float32 else tl.int64
    return (tl.minimum((n - left) * per_unit, clip) + 0.5).to(INTEGER)


@triton.jit
def _add(bin_ptr, added, offset, mask, copy_stride, HARD: tl.constexpr, COMPUTE: tl.constexpr):
    """Add a number and an offset to a bin: packed into one integer, or into two arrays."""
    if HARD:
        tl.atomic_add(bin_ptr, added, mask=mask, sem="relaxed")
    elif COMPUTE == tl.float32:
        tl.atomic_add(bin_ptr, (added << COUNT_SHIFT) + offset, mask=mask, sem="relaxed")
    else:
        tl.atomic_add(bin_ptr, added, mask=mask, sem="relaxed")
        tl.atomic_add(bin_ptr + copy_stride // 2, offset, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["num_bins", "num_copies", "copy_stride"])
def _sum_kernel(
    copies_ptr,
    totals_ptr,
    num_bins,
    num_copies,
    copy_stride,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Number and offsets of a block of bins, over all copies."""
    bins = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    num = tl.zeros([ROWS, BLOCK], tl.int64)
    offset = tl.zeros([ROWS, BLOCK], tl.int64)
    for start in range(0, num_copies, ROWS):
        copy = (start + tl.arange(0, ROWS))[:, None]
        at = copies_ptr + copy.to(tl.int64) * copy_stride + bins[None, :]
        mask = (copy < num_copies) & (bins < num_bins)[None, :]
        value = tl.load(at, mask=mask, other=0)
        if HARD:
            num += value
        elif COMPUTE == tl.float32:
            num += (value >> COUNT_SHIFT) & COUNT_MASK  # the number reaches the sign bit
            offset += value & OFFSET_MASK
        else:
            num += value
            offset += tl.load(at + copy_stride // 2, mask=mask, other=0)
    tl.store(totals_ptr + bins, tl.sum(num, 0), mask=bins < num_bins)
    tl.store(totals_ptr + num_bins + bins, tl.sum(offset, 0), mask=bins < num_bins)


@triton.jit(do_not_specialize=["num_bins", "capacity"])
def _above_kernel(
    sorted_ptr,
    offsets_ptr,
    kinks_ptr,
    places_ptr,
    totals_ptr,
    numbers_ptr,
    areas_ptr,
    above_ptr,
    num_bins,
    capacity,
    delta: tl.float64,
    per_unit: tl.float64,
    clip: tl.float64,
    BLOCK: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Numbers and areas right of each kink of a scope, from its last bin down; then b of its positives."""
    scope = tl.program_id(0).to(tl.int64)
    delta, clip = number(delta, tl.float64), number(clip, COMPUTE)
    unit = 1 / number(per_unit, tl.float64)
    per_unit = number(per_unit, COMPUTE)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    num_positives = (last - first).to(tl.int32)
    num_kinks = num_positives if HARD else 2 * num_positives
    kinks_ptr += 2 * first
    totals_ptr += 2 * first + scope
    numbers_ptr += 2 * first
    areas_ptr += 2 * first
    num_right = tl.full([], 0, tl.int64)
    area_right = tl.full([], 0, tl.int64)
    for start in range(0, num_kinks, BLOCK):
        bins = num_kinks - start - tl.arange(0, BLOCK)  # bin m lies right of kink m - 1
        mask = bins > 0
        num = tl.load(totals_ptr + bins, mask=mask, other=0)
        numbers = num_right + tl.cumsum(num, 0)
        tl.store(numbers_ptr + bins - 1, numbers, mask=mask)
        num_right += tl.sum(num)
        if not HARD:
            begin = tl.load(kinks_ptr + bins - 1, mask=mask, other=0)
            end = tl.load(kinks_ptr + bins, mask=mask & (bins < num_kinks), other=0)
            width = tl.where(mask & (bins < num_kinks), _offset(end, begin, per_unit, clip), 0)
            area = tl.load(totals_ptr + num_bins + bins, mask=mask, other=0) + (numbers - num) * width
            tl.store(areas_ptr + bins - 1, area_right + tl.cumsum(area, 0), mask=mask)
            area_right += tl.sum(area)

    tl.debug_barrier()  # what other threads of the program have written is read below
    # Comparisons have hidden a NaN among the scores of the scope, which is to reach all: a positive is the last.
    last_p = tl.load(sorted_ptr + last - 1, mask=num_positives > 0, other=0)
    is_nan = (tl.load(totals_ptr) > 0) | (last_p != last_p)
    for start in range(0, num_positives, BLOCK):
        at = first + start + tl.arange(0, BLOCK)
        there = at < last
        lower = tl.load(places_ptr + at, mask=there, other=0)
        num_lower = tl.load(numbers_ptr + lower, mask=there, other=0).to(tl.float64)
        above = num_lower
        if not HARD:
            p = tl.load(sorted_ptr + at, mask=there, other=0).to(tl.float64)
            upper = tl.load(places_ptr + capacity + at, mask=there, other=0)
            num_upper = tl.load(numbers_ptr + upper, mask=there, other=0).to(tl.float64)
            area = tl.load(areas_ptr + lower, mask=there, other=0) - tl.load(areas_ptr + upper, mask=there, other=0)
            begin = tl.load(kinks_ptr + lower, mask=there, other=0).to(tl.float64)
            end = tl.load(kinks_ptr + upper, mask=there, other=0).to(tl.float64)
            # What rounding the kinks up has left out, exactly: no score lies between. p is subtracted first: of a large
            # one p - delta has no digits of delta.
            left_out = begin - p + delta
            missing_lower = left_out * num_lower
            missing_upper = (end - p - delta) * num_upper
            above = (area.to(tl.float64) * unit + missing_lower - missing_upper) / (2 * delta)
            # Of scores so large that a window becomes longer than that, all inside are at its lower kink.
            at_kink = num_upper + (num_lower - num_upper) * left_out / (2 * delta)
            above = tl.where(end - begin > 4 * delta, at_kink, above)
        above = tl.where(is_nan, float("nan"), above)
        tl.store(above_ptr + at, above.to(COMPUTE), mask=there)


def count(scopes: Scopes, positives: Positives, kinks: Kinks, delta: float) -> Tensor:
    """b_i [P], in the order of the positives; there is a positive and a candidate."""
    scores, offsets = positives.scores, positives.offsets
    is_double = scores.dtype == torch.float64
    fraction_bits = min(45, 61 - scopes.num_candidates.bit_length()) if is_double else 28
    # Differences below the smallest unit matter to no delta that one can tell from 0 in float32.
    unit = 2.0 ** max(math.ceil(math.log2(2 * delta)), -98) if delta > 0 else 1.0
    num_blocks = cdiv(scopes.num_candidates, BLOCK)
    blocks_at_once = max(1, min(MAX_BLOCKS, num_blocks * scopes.num_scopes // MIN_PROGRAMS))
    programs_in_scope = cdiv(num_blocks, blocks_at_once)
    programs_in_copy = MAX_IN_COPY // (BLOCK * blocks_at_once)
    num_copies = cdiv(programs_in_scope, programs_in_copy)
    num_bins = 2 * scores.numel() + scopes.num_scopes
    copy_stride = num_bins * (2 if is_double else 1)
    copies = torch.zeros(num_copies * copy_stride, dtype=torch.int64, device=scores.device)
    totals = torch.empty(2 * num_bins, dtype=torch.int64, device=scores.device)
    numbers = torch.empty(2 * scores.numel(), dtype=torch.int64, device=scores.device)
    areas = torch.empty_like(numbers)
    above = torch.empty_like(scores)
    constants = {"HARD": delta == 0, "COMPUTE": TRITON_DTYPE[scores.dtype]}
    in_units = {"per_unit": 2.0**fraction_bits / unit, "clip": CLIP * 2.0**fraction_bits}
    _bins_kernel[programs_in_scope * scopes.num_scopes,](
        scopes.logits,
        scopes.targets,
        offsets,
        kinks.lines,
        kinks.cells,
        copies,
        num_candidates=scopes.num_candidates,
        programs_in_scope=programs_in_scope,
        programs_in_copy=programs_in_copy,
        blocks_at_once=blocks_at_once,
        copy_stride=copy_stride,
        INDEX=index_type(scopes),
        BLOCK=BLOCK,
        CELLS=CELLS,
        HARD=delta == 0,
        num_warps=1,
        **scope_arguments(scopes),
        **scopes.arguments(),
        **in_units,
    )
    _sum_kernel[cdiv(num_bins, SUM_BLOCK),](
        copies,
        totals,
        num_bins=num_bins,
        num_copies=num_copies,
        copy_stride=copy_stride,
        BLOCK=SUM_BLOCK,
        ROWS=SUM_ROWS,
        **constants,
    )
    _above_kernel[scopes.num_scopes,](
        scores,
        offsets,
        kinks.lines,
        kinks.places,
        totals,
        numbers,
        areas,
        above,
        num_bins=num_bins,
        capacity=scores.numel(),
        delta=delta,
        BLOCK=SCAN_BLOCK,
        num_warps=SCAN_WARPS,
        **in_units,
        **constants,
    )
    return above

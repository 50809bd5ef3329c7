"""Count by pairs, b_i = sum_j H(n_j - p_i): every mixed negative is compared with every positive, in tiles.

H is in step.py. Only the mixed negatives of lists.py need pairs; the others contribute their number and their sum.
A pair takes two instructions: with n' = (n - c) / (2 delta) and p' = (p - c) / (2 delta) - 1/2, H = saturate(n' - p'),
an addition that saturates, and an addition to the sum. The origin c is a score of the tile of positives, so that the
rescaling costs few digits; a tile whose scores lie so far apart that it would cost more takes a third instruction,
(n - p) / (2 delta) + 1/2.

    symbol               meaning
    i, p; j, n           positives and their scores; negatives and theirs
    list, line           scores of mixed negatives, and the sums over the others: lists.py
    partial [R, P]       sums over the pairs of each positive with every R-th part of its scope's lists

    owner of outputs     _pairs_kernel (t, r, s): partial[r] of tile t of the positives of s;  _combine_kernel (t, s): b
    accumulation         in a program in float32 (float64 for float64 logits), across programs in float64
    order of every sum   fixed by the shapes alone: results are bitwise the same on any device, in any run
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import number
from ..candidates import TRITON_DTYPE, Scopes, clamp_scores
from ..grid import cdiv
from ..listing import Positives
from .lists import list_mixed, score_range
from .step import half_inverse, saturating_step

# Not yet measured on a GPU; from instruction counts: a [128, 64] tile of pairs over 4 warps keeps 64 sums a thread in
# registers, so that loading and rescaling the scores is under 5 % of the instructions of a tile.
PAIRS_BLOCK = 128
POSITIVES_BLOCK = 64
POSITIVES_BLOCK_FLOAT64 = 16  # its sums and scores take two registers each: with 64 they spilled
MAX_RESCALED = tl.constexpr(16.0)  # rounding of p' up to here moves H by at most 2**-20 in float32
MIN_PROGRAMS = 2048  # of _pairs_kernel: at 3 programs a multiprocessor (its registers), 5 rounds of an H200
PARTIALS_BLOCK = 16  # partial sums of a positive that _combine_kernel adds at a time


@triton.jit
def _sum_pairs(
    list_ptr,
    num_listed_ptr,
    p,
    origin,
    first_list,
    last_list,
    capacity,
    half_inverse_delta,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    HARD: tl.constexpr,
    RESCALED: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums of H over the pairs of the positives p [TILE] with the negatives of some lists."""
    sums = tl.zeros([TILE, BLOCK], COMPUTE)
    nan = tl.zeros([BLOCK], COMPUTE)
    for item in range(first_list, last_list):
        num_listed = tl.load(num_listed_ptr + item)
        for start in range(0, num_listed, BLOCK):
            j = start + tl.arange(0, BLOCK)
            n = clamp_scores(tl.load(list_ptr + item * capacity + j, mask=j < num_listed, other=0), COMPUTE)
            nan += 0 * n
            if RESCALED:
                n = tl.where(j < num_listed, (n - origin) * half_inverse_delta, float("-inf"))
                sums += tl.clamp(n[None, :] - p[:, None], 0.0, 1.0)
            else:
                n = tl.where(j < num_listed, n, float("-inf"))
                sums += saturating_step(n[None, :] - p[:, None], half_inverse_delta, HARD)
    # A saturating addition hides NaN, the zeros do not.
    return tl.sum(sums, 1) + tl.sum(nan)


@triton.jit
def _pairs_kernel(
    list_ptr,
    num_listed_ptr,
    scores_ptr,
    offsets_ptr,
    partial_ptr,
    num_positives,
    num_lists,
    lists_per_program,
    capacity,
    half_inverse_delta: tl.float64,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums of H over the pairs of a tile of positives with the negatives of lists_per_program lists."""
    half_inverse_delta = number(half_inverse_delta, COMPUTE)
    tile, program, scope = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    i = first + tile * TILE + tl.arange(0, TILE)
    if first + tile * TILE < last:
        # Behind the last positive: a score that no negative reaches.
        p = tl.load(scores_ptr + i, mask=i < last, other=float("inf"))
        origin = tl.load(scores_ptr + first + tile * TILE)
        distance = tl.max(tl.where(i < last, tl.abs(p - origin), 0)) * half_inverse_delta
        first_list = scope * num_lists + program * lists_per_program
        last_list = scope * num_lists + tl.minimum((program + 1) * lists_per_program, num_lists)
        if (distance < MAX_RESCALED) & (not HARD):
            p = (p - origin) * half_inverse_delta - 0.5
            sums = _sum_pairs(
                list_ptr,
                num_listed_ptr,
                p,
                origin,
                first_list,
                last_list,
                capacity,
                half_inverse_delta,
                BLOCK,
                TILE,
                HARD,
                RESCALED=True,
                COMPUTE=COMPUTE,
            )
        else:
            sums = _sum_pairs(
                list_ptr,
                num_listed_ptr,
                p,
                origin,
                first_list,
                last_list,
                capacity,
                half_inverse_delta,
                BLOCK,
                TILE,
                HARD,
                RESCALED=False,
                COMPUTE=COMPUTE,
            )
        tl.store(partial_ptr + program * num_positives + i, sums, mask=i < last)


@triton.jit
def _combine_kernel(
    partial_ptr,
    line_ptr,
    scores_ptr,
    offsets_ptr,
    above_ptr,
    num_positives,
    num_partials,
    num_lists,
    delta: tl.float64,
    half_inverse_delta: tl.float64,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """b_i: pairs, saturated negatives, and negatives on the line."""
    delta, half_inverse_delta = number(delta, tl.float64), number(half_inverse_delta, tl.float64)
    tile, scope = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    i = first + tile * TILE + tl.arange(0, TILE)
    if first + tile * TILE < last:
        num_saturated = tl.zeros([ROWS], tl.float64)
        num_on_line = tl.zeros([ROWS], tl.float64)
        sum_on_line = tl.zeros([ROWS], tl.float64)
        for start in range(0, num_lists, ROWS):
            row = start + tl.arange(0, ROWS)
            at = line_ptr + (scope * num_lists + row) * 3
            num_saturated += tl.load(at, mask=row < num_lists, other=0).to(tl.float64)
            num_on_line += tl.load(at + 1, mask=row < num_lists, other=0).to(tl.float64)
            sum_on_line += tl.load(at + 2, mask=row < num_lists, other=0).to(tl.float64)
        sums = tl.zeros([ROWS, TILE], tl.float64)
        for start in range(0, num_partials, ROWS):
            row = start + tl.arange(0, ROWS)
            at = partial_ptr + row[:, None].to(tl.int64) * num_positives + i[None, :]
            mask = (row < num_partials)[:, None] & (i < last)[None, :]
            sums += tl.load(at, mask=mask, other=0).to(tl.float64)

        p = tl.load(scores_ptr + i, mask=i < last, other=0)
        above = tl.sum(sums, 0) + tl.sum(num_saturated)
        if not HARD:
            p_min, p_max = score_range(scores_ptr, first, last)
            from_center = (0.5 * (p_min + p_max) - p).to(tl.float64) + delta
            above += (tl.sum(sum_on_line) + tl.sum(num_on_line) * from_center) * half_inverse_delta
        # Comparisons have hidden a NaN; a positive that is NaN is the last.
        above += 0 * tl.load(scores_ptr + last - 1).to(tl.float64)
        tl.store(above_ptr + i, above.to(COMPUTE), mask=i < last)


def count(scopes: Scopes, positives: Positives, delta: float) -> Tensor:
    """b_i [P], in the order of the positives, which is ascending; there is a positive and a candidate."""
    scores, offsets = positives.scores, positives.offsets
    num_positives = scores.numel()
    above = torch.empty_like(scores)
    tile = POSITIVES_BLOCK_FLOAT64 if scores.dtype == torch.float64 else POSITIVES_BLOCK
    lists = list_mixed(scopes, positives, delta)
    num_tiles = cdiv(num_positives, tile)
    # Enough programs to fill a GPU; more only as long as their sums stay small beside the logits.
    num_partials = max(cdiv(MIN_PROGRAMS, num_tiles), scopes.num_candidates // (32 * num_positives))
    lists_per_program = cdiv(lists.num_lists, num_partials)
    num_partials = cdiv(lists.num_lists, lists_per_program)
    partial = torch.empty(num_partials * num_positives, dtype=scores.dtype, device=scores.device)
    constants = {"TILE": tile, "HARD": delta == 0, "COMPUTE": TRITON_DTYPE[scores.dtype]}
    _pairs_kernel[num_tiles, num_partials, scopes.num_scopes](
        lists.scores,
        lists.num_listed,
        scores,
        offsets,
        partial,
        num_positives=num_positives,
        num_lists=lists.num_lists,
        lists_per_program=lists_per_program,
        capacity=lists.capacity,
        half_inverse_delta=half_inverse(delta),
        BLOCK=PAIRS_BLOCK,
        **constants,
    )
    _combine_kernel[num_tiles, scopes.num_scopes](
        partial,
        lists.lines,
        scores,
        offsets,
        above,
        num_positives=num_positives,
        num_partials=num_partials,
        num_lists=lists.num_lists,
        delta=delta,
        half_inverse_delta=half_inverse(delta),
        ROWS=PARTIALS_BLOCK,
        **constants,
    )
    return above

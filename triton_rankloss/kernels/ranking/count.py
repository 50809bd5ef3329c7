"""Count: how many negatives rank above each positive, b_i = sum_j H(n_j - p_i), over tiles of pairs.

    H(x) = clip(x / (2 delta) + 1/2, 0, 1),   for delta = 0: H(x) = [x >= 0]

Only negatives that see some positives differently from others need pairs. With lowest and highest positive p_min and
p_max of the scope, a negative is, for all positives at once,
    irrelevant  below p_min - delta                    H = 0
    saturated   at or above p_max + delta              H = 1: their number is enough
    on the line in [p_max - delta, p_min + delta]      H = (n_j - p_i + delta) / (2 delta): their number and sum are
    mixed       anywhere else, or NaN                  copied to a list, densely
At the start of training, when all scores lie in a narrow band, every negative is on the line; later nearly all are
irrelevant. Pairs are taken over the dense lists alone, two instructions each: with n' = (n - c) / (2 delta) and
p' = (p - c) / (2 delta) - 1/2, H = saturate(n' - p'), an addition that saturates, and an addition to the sum. The
origin c is a score of the tile of positives, so that the rescaling costs few digits; a tile whose scores lie so far
apart that it would cost more takes a third instruction, (n - p) / (2 delta) + 1/2.

    symbol               meaning
    i, p; j, n           positives and their scores; negatives and theirs
    lists [S, L, ...]    scores of the mixed negatives; list l of scope s holds those of its blocks l, l + L, ...
    lines [S, L, 3]      number of the saturated, number of those on the line, their sum relative to (p_min + p_max) / 2
    partial [R, P]       sums over the pairs of each positive with every R-th part of its scope's lists

    owner of outputs     _list_kernel (l, s): list l of scope s, and its line
                         _pairs_kernel (t, r, s): partial[r] of tile t of the positives of s;  _combine_kernel (t, s): b
    accumulation         in a program in float32 (float64 for float64 logits), across programs in float64
    order of every sum   fixed by the shapes alone: results are bitwise the same on any device, in any run
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..candidates import TRITON_DTYPE, Positives, Scopes, finite_scores, load_candidates
from .positives import step

# Not yet measured on a GPU; from instruction counts: a [128, 64] tile of pairs over 4 warps keeps 64 sums a thread in
# registers, so that loading and rescaling the scores is under 5 % of the instructions of a tile.
PAIRS_BLOCK = 128
POSITIVES_BLOCK = 64
POSITIVES_BLOCK_FLOAT64 = 16  # its sums and scores take two registers each: with 64 they spilled
CANDIDATES_BLOCK = 1024  # 8 logits a thread: two 16-byte loads of float32, one of half precision
MAX_RESCALED = tl.constexpr(16.0)  # rounding of p' up to here moves H by at most 2**-20 in float32
MIN_PROGRAMS = 2048  # of _pairs_kernel: at 3 programs a multiprocessor (its registers), 5 rounds of an H200
MAX_LISTS = 1024  # programs that read the logits: several for each multiprocessor of today's GPUs


@triton.jit
def _score_range(scores_ptr, first, last, TILE: tl.constexpr, COMPUTE: tl.constexpr):
    """(p_min, p_max) of a scope."""
    lowest = tl.full([TILE], float("inf"), COMPUTE)
    highest = tl.full([TILE], float("-inf"), COMPUTE)
    for start in range(first, last, TILE):
        i = start + tl.arange(0, TILE)
        lowest = tl.minimum(lowest, tl.load(scores_ptr + i, mask=i < last, other=float("inf")))
        highest = tl.maximum(highest, tl.load(scores_ptr + i, mask=i < last, other=float("-inf")))
    return tl.min(lowest), tl.max(highest)


@triton.jit
def _list_kernel(
    logits_ptr, targets_ptr, scores_ptr, offsets_ptr, list_ptr, num_listed_ptr, line_ptr, num_candidates, list_capacity,
    delta,
    BLOCK: tl.constexpr, TILE: tl.constexpr, HARD: tl.constexpr,
    NUM_CLASSES: tl.constexpr, LABELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """List the mixed negatives of every num_lists-th block; sum up those that are saturated or on the line."""
    program, scope = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_lists = tl.num_programs(0)
    slot = scope * num_lists + program
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    p_min, p_max = _score_range(scores_ptr, first, last, TILE, COMPUTE)
    center = 0.5 * (p_min + p_max)

    num_listed = 0
    num_saturated = tl.zeros([BLOCK], COMPUTE)
    num_on_line = tl.zeros([BLOCK], COMPUTE)
    line_sum = tl.zeros([BLOCK], COMPUTE)
    num_blocks = tl.where(first < last, tl.cdiv(num_candidates, BLOCK), 0)
    for block in range(program, num_blocks, num_lists):
        _, _, n, negative, _ = load_candidates(
            logits_ptr, targets_ptr, scope, tl.cast(block, tl.int64) * BLOCK, num_candidates,
            BLOCK, NUM_CLASSES, LABELS, COMPUTE,
        )  # fmt: skip
        # Differences of scores keep their digits where p_max + delta would round to p_max.
        irrelevant = n - p_min < -delta
        saturated = negative & (n - p_max >= delta)
        # A NaN compares false everywhere, and so is listed.
        mixed = negative & (irrelevant == 0) & (saturated == 0)
        num_saturated += saturated.to(COMPUTE)
        if not HARD:
            on_line = mixed & (n - p_max >= -delta) & (n - p_min <= delta)
            mixed = mixed & (on_line == 0)
            num_on_line += on_line.to(COMPUTE)
            line_sum += tl.where(on_line, n - center, 0)
        count = mixed.to(tl.int32)
        at = slot * list_capacity + num_listed + tl.cumsum(count, 0) - 1
        tl.store(list_ptr + at, n.to(list_ptr.dtype.element_ty), mask=mixed)
        num_listed += tl.sum(count)
    tl.store(num_listed_ptr + slot, num_listed)
    tl.store(line_ptr + slot * 3, tl.sum(num_saturated))
    tl.store(line_ptr + slot * 3 + 1, tl.sum(num_on_line))
    tl.store(line_ptr + slot * 3 + 2, tl.sum(line_sum))


@triton.jit
def _sum_pairs(
    list_ptr, num_listed_ptr, p, origin, first_list, last_list, list_capacity, half_inverse_delta,
    BLOCK: tl.constexpr, TILE: tl.constexpr, HARD: tl.constexpr, RESCALED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Sums of H over the pairs of the positives p [TILE] with the negatives of some lists."""
    sums = tl.zeros([TILE, BLOCK], COMPUTE)
    nan = tl.zeros([BLOCK], COMPUTE)
    for item in range(first_list, last_list):
        num_listed = tl.load(num_listed_ptr + item)
        for start in range(0, num_listed, BLOCK):
            j = start + tl.arange(0, BLOCK)
            n = finite_scores(tl.load(list_ptr + item * list_capacity + j, mask=j < num_listed, other=0), COMPUTE)
            nan += 0 * n
            if RESCALED:
                n = tl.where(j < num_listed, (n - origin) * half_inverse_delta, float("-inf"))
                sums += tl.clamp(n[None, :] - p[:, None], 0.0, 1.0)
            else:
                n = tl.where(j < num_listed, n, float("-inf"))
                sums += step(n[None, :] - p[:, None], half_inverse_delta, HARD)
    # A saturating addition hides NaN, the zeros do not.
    return tl.sum(sums, 1) + tl.sum(nan)


@triton.jit
def _pairs_kernel(
    list_ptr, num_listed_ptr, scores_ptr, offsets_ptr, partial_ptr, num_positives, num_lists, lists_per_program,
    list_capacity, half_inverse_delta,
    BLOCK: tl.constexpr, TILE: tl.constexpr, HARD: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Sums of H over the pairs of a tile of positives with the negatives of some lists."""
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
                list_ptr, num_listed_ptr, p, origin, first_list, last_list, list_capacity, half_inverse_delta,
                BLOCK, TILE, HARD, True, COMPUTE,
            )  # fmt: skip
        else:
            sums = _sum_pairs(
                list_ptr, num_listed_ptr, p, origin, first_list, last_list, list_capacity, half_inverse_delta,
                BLOCK, TILE, HARD, False, COMPUTE,
            )  # fmt: skip
        tl.store(partial_ptr + program * num_positives + i, sums, mask=i < last)


@triton.jit
def _combine_kernel(
    partial_ptr, line_ptr, scores_ptr, offsets_ptr, above_ptr, num_positives, num_partials, num_lists, delta,
    half_inverse_delta,
    TILE: tl.constexpr, ROWS: tl.constexpr, HARD: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """b_i: pairs, saturated negatives, and negatives on the line."""
    tile, scope = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    i = first + tile * TILE + tl.arange(0, TILE)
    if first + tile * TILE < last:
        num_saturated = tl.zeros([ROWS], tl.float64)
        num_on_line = tl.zeros([ROWS], tl.float64)
        line_sum = tl.zeros([ROWS], tl.float64)
        for start in range(0, num_lists, ROWS):
            row = start + tl.arange(0, ROWS)
            at = line_ptr + (scope * num_lists + row) * 3
            num_saturated += tl.load(at, mask=row < num_lists, other=0).to(tl.float64)
            num_on_line += tl.load(at + 1, mask=row < num_lists, other=0).to(tl.float64)
            line_sum += tl.load(at + 2, mask=row < num_lists, other=0).to(tl.float64)
        sums = tl.zeros([ROWS, TILE], tl.float64)
        for start in range(0, num_partials, ROWS):
            row = start + tl.arange(0, ROWS)
            at = partial_ptr + row[:, None].to(tl.int64) * num_positives + i[None, :]
            mask = (row < num_partials)[:, None] & (i < last)[None, :]
            sums += tl.load(at, mask=mask, other=0).to(tl.float64)

        p = tl.load(scores_ptr + i, mask=i < last, other=0)
        above = tl.sum(sums, 0) + tl.sum(num_saturated)
        if not HARD:
            p_min, p_max = _score_range(scores_ptr, first, last, TILE, COMPUTE)
            from_center = (0.5 * (p_min + p_max) - p + delta).to(tl.float64)
            above += (tl.sum(line_sum) + tl.sum(num_on_line) * from_center) * half_inverse_delta
        tl.store(above_ptr + i, above + 0 * p, mask=i < last)  # 0 p: comparisons have hidden a NaN


def count(scopes: Scopes, positives: Positives, delta: float) -> Tensor:
    """b_i [P]: how many negatives of its scope rank above each positive."""
    num_positives = positives.scores.numel()
    above = torch.empty_like(positives.scores)
    if num_positives == 0 or scopes.num_candidates == 0:
        return above.zero_()
    num_blocks = triton.cdiv(scopes.num_candidates, CANDIDATES_BLOCK)
    blocks_per_list = triton.cdiv(num_blocks, MAX_LISTS)
    num_lists = triton.cdiv(num_blocks, blocks_per_list)
    list_capacity = blocks_per_list * CANDIDATES_BLOCK
    tile = POSITIVES_BLOCK_FLOAT64 if above.dtype == torch.float64 else POSITIVES_BLOCK
    num_tiles = triton.cdiv(num_positives, tile)
    # Enough programs to fill a GPU; more only as long as their sums stay small beside the logits.
    num_partials = max(triton.cdiv(MIN_PROGRAMS, num_tiles), scopes.num_candidates // (32 * num_positives))
    lists_per_program = triton.cdiv(num_lists, num_partials)
    num_partials = triton.cdiv(num_lists, lists_per_program)

    device, dtype = scopes.logits.device, above.dtype
    lists = torch.empty(scopes.num_scopes * num_lists * list_capacity, dtype=scopes.logits.dtype, device=device)
    num_listed = torch.empty(scopes.num_scopes * num_lists, dtype=torch.int32, device=device)
    lines = torch.empty(scopes.num_scopes * num_lists * 3, dtype=dtype, device=device)
    partial = torch.empty(num_partials * num_positives, dtype=dtype, device=device)
    _, scores, offsets = positives
    half_inverse_delta = 0.5 / delta if delta > 0 else 0.0
    constants = {"TILE": tile, "HARD": delta == 0, "COMPUTE": TRITON_DTYPE[dtype]}
    _list_kernel[num_lists, scopes.num_scopes](
        scopes.logits, scopes.targets, scores, offsets, lists, num_listed, lines, scopes.num_candidates, list_capacity,
        delta, BLOCK=CANDIDATES_BLOCK, NUM_CLASSES=scopes.num_classes, LABELS=scopes.labels, **constants,
    )  # fmt: skip
    _pairs_kernel[num_tiles, num_partials, scopes.num_scopes](
        lists, num_listed, scores, offsets, partial, num_positives, num_lists, lists_per_program, list_capacity,
        half_inverse_delta, BLOCK=PAIRS_BLOCK, **constants,
    )  # fmt: skip
    _combine_kernel[num_tiles, scopes.num_scopes](
        partial, lines, scores, offsets, above, num_positives, num_partials, num_lists, delta, half_inverse_delta,
        ROWS=16, **constants,
    )  # fmt: skip
    return above

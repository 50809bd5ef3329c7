"""Lists of the negatives that have to be compared with positives pair by pair, and sums over all others.

H is in step.py. With p_min and p_max the lowest and highest positive of the scope, a negative is, for all positives at
once,
    irrelevant  below p_min - delta                    H = 0
    saturated   at or above p_max + delta              H = 1: their number is enough
    on the line in [p_max - delta, p_min + delta]      H = (n_j - p_i + delta) / (2 delta): their number and sum are
    mixed       anywhere else, or NaN                  copied to a list, densely
At the start of training, when all scores lie in a narrow band, every negative is on the line; later nearly all are
irrelevant.

    symbol               meaning
    n                    scores of negatives
    scores [S, L, ...]   of the mixed negatives; list l of scope s holds those of its blocks l, l + L, ...
    lines [S, L, 3]      number of the saturated, number of those on the line, their sum relative to (p_min + p_max) / 2

    owner of outputs     _list_kernel (l, s): list l of scope s, and its line
    accumulation         float32 (float64 for float64 logits)
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import number
from ..blocks import index_type, kinds_of_block, load_block, scope_arguments
from ..candidates import Scopes, clamp_scores
from ..grid import cdiv
from ..listing import Positives

CANDIDATES_BLOCK = 1024  # 8 logits a thread: two 16-byte loads of float32, one of half precision
MAX_LISTS = 1024  # programs that read the logits: several for each multiprocessor of today's GPUs


class Lists(NamedTuple):
    """What `_list_kernel` writes."""

    scores: Tensor  # [S, L, capacity], in the dtype of the logits
    num_listed: Tensor  # int32 [S, L]
    lines: Tensor  # [S, L, 3]
    num_lists: int  # L, of a scope
    capacity: int  # of a list


@triton.jit
def score_range(sorted_ptr, first, last):
    """(p_min, p_max) of a scope; NaN if a positive is."""
    there = first < last
    p_max = tl.load(sorted_ptr + last - 1, mask=there, other=0)
    return tl.load(sorted_ptr + first, mask=there, other=0) + 0 * p_max, p_max


@triton.jit(do_not_specialize=["num_candidates", "num_targets"])
def _list_kernel(
    logits_ptr,
    targets_ptr,
    sorted_ptr,
    offsets_ptr,
    list_ptr,
    num_listed_ptr,
    line_ptr,
    num_candidates,
    num_targets,
    capacity,
    delta: tl.float64,
    INDEX: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    HARD: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """List the mixed negatives of every num_lists-th block; sum up those that are saturated or on the line."""
    delta = number(delta, COMPUTE)
    program, scope = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_lists = tl.num_programs(0)
    slot = scope * num_lists + program
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    p_min, p_max = score_range(sorted_ptr, first, last)
    center = 0.5 * (p_min + p_max)
    logits_ptr += tl.multiple_of(scope * num_candidates, ALIGNMENT)
    targets_ptr += scope * num_targets

    num_listed = 0
    num_saturated = tl.zeros([BLOCK], COMPUTE)
    num_on_line = tl.zeros([BLOCK], COMPUTE)
    sum_on_line = tl.zeros([BLOCK], COMPUTE)
    num_blocks = tl.where(first < last, (num_candidates - 1) // BLOCK + 1, 0)
    for block in range(program, num_blocks, num_lists):
        start = tl.cast(block, INDEX) * BLOCK
        n = clamp_scores(load_block(logits_ptr, start, num_candidates, BLOCK), COMPUTE)
        negative, _ = kinds_of_block(targets_ptr, start, num_candidates, BLOCK, NUM_CLASSES, LABELS)
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
            sum_on_line += tl.where(on_line, n - center, 0)
        is_mixed = mixed.to(tl.int32)
        at = slot * capacity + num_listed + tl.cumsum(is_mixed, 0) - 1
        tl.store(list_ptr + at, n.to(list_ptr.dtype.element_ty), mask=mixed)
        num_listed += tl.sum(is_mixed)
    tl.store(num_listed_ptr + slot, num_listed)
    tl.store(line_ptr + slot * 3, tl.sum(num_saturated))
    tl.store(line_ptr + slot * 3 + 1, tl.sum(num_on_line))
    tl.store(line_ptr + slot * 3 + 2, tl.sum(sum_on_line))


def list_mixed(scopes: Scopes, positives: Positives, delta: float) -> Lists:
    """Lists and lines of all scopes, in one pass over the logits; positives in ascending order."""
    num_blocks = cdiv(scopes.num_candidates, CANDIDATES_BLOCK)
    blocks_per_list = cdiv(num_blocks, MAX_LISTS)
    num_lists = cdiv(num_blocks, blocks_per_list)
    capacity = blocks_per_list * CANDIDATES_BLOCK
    total, device, dtype = scopes.num_scopes * num_lists, scopes.logits.device, positives.scores.dtype
    lists = Lists(
        scores=torch.empty(total * capacity, dtype=scopes.logits.dtype, device=device),
        num_listed=torch.empty(total, dtype=torch.int32, device=device),
        lines=torch.empty(total * 3, dtype=dtype, device=device),
        num_lists=num_lists,
        capacity=capacity,
    )
    _list_kernel[num_lists, scopes.num_scopes](
        scopes.logits,
        scopes.targets,
        positives.scores,
        positives.offsets,
        lists.scores,
        lists.num_listed,
        lists.lines,
        num_candidates=scopes.num_candidates,
        capacity=capacity,
        delta=delta,
        INDEX=index_type(scopes),
        BLOCK=CANDIDATES_BLOCK,
        HARD=delta == 0,
        **scope_arguments(scopes),
        **scopes.arguments(),
    )
    return lists

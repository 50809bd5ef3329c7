"""Transport: the gradient of every logit, g_j = sum_i w_i H(n_j - p_i) at the negatives, by look-up.

g is piecewise linear in n_j; finish.py has its lines. A negative is looked up,
    g_j = value + slope (n_j - kink),   at the last kink that is not above n_j,
and written once, in the dtype of the logits, times the upstream gradient. A block whose relevant negatives all lie
between the last lower and the first upper kink, as all do at the start of training, needs no search. What positives
are to get is written over what this leaves at them.

    symbol               meaning
    lines [3, 2 P]       kinks; value at each and slope right of it
    updates [K, P]       of the positives, for each of K losses: the sum over losses of upstream [K] times these
                         is their gradient

    owner of outputs     _transport_kernel (scope, program): all logits of its blocks;  then
                         _positives_kernel t: the gradient of the positives in tile t
    accumulation         float32 (float64 for float64 logits)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import number
from ..blocks import index_type, load_candidates, scope_arguments, store_block
from ..candidates import TRITON_DTYPE, scopes_of
from ..grid import cdiv
from .finish import load_lines
from .kinks import CELLS, cell_scale, find_bins
from .step import representable

# Not yet measured on a GPU; from instruction counts.
BLOCK = 256  # one warp, eight logits a lane: two stores of 16 bytes in float32, one in half precision
BLOCKS_AT_ONCE = 4
TILE = 128


@triton.jit(do_not_specialize=["num_candidates", "num_targets", "capacity", "programs_in_scope"])
def _transport_kernel(
    logits_ptr,
    targets_ptr,
    sorted_ptr,
    offsets_ptr,
    lines_ptr,
    cells_ptr,
    upstream_ptr,
    gradient_ptr,
    num_candidates,
    num_targets,
    capacity,
    programs_in_scope,
    delta: tl.float64,
    INDEX: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS_AT_ONCE: tl.constexpr,
    CELLS: tl.constexpr,
    HARD: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of some blocks of logits; 0 at positives."""
    scope = (tl.program_id(0) // programs_in_scope).to(tl.int64)
    program = tl.program_id(0) - scope * programs_in_scope
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    num_positives = (last - first).to(tl.int32)
    num_kinks = num_positives if HARD else 2 * num_positives
    num_cells = num_positives * CELLS
    there = num_positives > 0
    first_candidate = tl.multiple_of(scope * num_candidates, ALIGNMENT)
    logits_ptr += first_candidate
    gradient_ptr += first_candidate
    targets_ptr += scope * num_targets
    value_ptr = lines_ptr + 2 * capacity + 4 * first
    lines_ptr += 2 * first
    cells_ptr += CELLS * first
    upstream = tl.load(upstream_ptr).to(COMPUTE)
    longest = (4 * number(delta, tl.float64)).to(COMPUTE)
    lowest = tl.load(lines_ptr, mask=there, other=float("inf"))
    highest = tl.load(lines_ptr + num_kinks - 1, mask=there, other=float("inf"))
    scale = cell_scale(lowest, highest, num_cells)
    # Between the last lower and the first upper kink. Where not all lower kinks come first, some other bin.
    middle_begin = tl.load(lines_ptr + num_positives - 1, mask=there, other=float("inf"))
    middle_end = tl.load(lines_ptr + num_positives, mask=num_positives < num_kinks, other=float("inf"))
    middle_value, middle_slope = load_lines(value_ptr, num_positives - 1, there, HARD, COMPUTE)
    middle_value, middle_slope = middle_value * upstream, middle_slope * upstream
    # The last positive is NaN if any is, as all are beyond a bound; so is every weight then, and every gradient.
    last_p = tl.load(sorted_ptr + last - 1, mask=there, other=0)
    lowest_relevant = tl.where(last_p == last_p, lowest, float("-inf"))
    for block in range(BLOCKS_AT_ONCE):
        start = (tl.cast(program, INDEX) * BLOCKS_AT_ONCE + block) * BLOCK
        n, negative, positive = load_candidates(
            logits_ptr, targets_ptr, start, num_candidates, BLOCK, NUM_CLASSES, LABELS, COMPUTE
        )
        relevant = (negative | positive) & ((n < lowest_relevant) == 0) & there
        in_middle = (n >= middle_begin) & (n < middle_end)
        gradient = tl.where(relevant, middle_value + middle_slope * tl.minimum(n - middle_begin, longest), 0)
        searched = relevant & (in_middle == 0)
        if tl.max(tl.where(searched, tl.arange(0, BLOCK), -1)) >= 0:
            entry = find_bins(n, searched, lines_ptr, cells_ptr, num_kinks, num_cells, lowest, scale) - 1
            found = searched & (entry >= 0)  # all but a NaN
            carried, slope = load_lines(value_ptr, entry, found, HARD, COMPUTE)
            if not HARD:
                kink = tl.load(lines_ptr + entry, mask=found, other=0)
                carried += slope * tl.minimum(n - kink, longest)
            gradient = tl.where(searched, carried * upstream, gradient)
        store_block(gradient_ptr, start, num_candidates, gradient, BLOCK)


@triton.jit(do_not_specialize=["capacity", "num_scopes"])
def _positives_kernel(
    offsets_ptr,
    positions_ptr,
    updates_ptr,
    upstream_ptr,
    gradient_ptr,
    capacity,
    num_scopes,
    TILE: tl.constexpr,
    NUM_UPDATES: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of a tile of positives."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    there = i < tl.load(offsets_ptr + num_scopes)
    update = tl.zeros([TILE], COMPUTE)
    for loss in tl.static_range(NUM_UPDATES):
        upstream = tl.load(upstream_ptr + loss).to(COMPUTE)
        update += upstream * tl.load(updates_ptr + loss * capacity + i, mask=there, other=0)
    at = tl.load(positions_ptr + i, mask=there, other=-1)  # -1: a positive of another rank
    tl.store(gradient_ptr + at, update.to(gradient_ptr.dtype.element_ty), mask=at >= 0)


def backward(
    logits: Tensor,
    targets: Tensor,
    upstream: Tensor,
    positions: Tensor,
    scores: Tensor,
    weights: Tensor,
    updates: Tensor,
    offsets: Tensor,
    lines: Tensor,
    cells: Tensor,
    delta: float,
) -> Tensor:
    """Gradient of the logits, in their dtype: upstream[0] g at negatives, updates times upstream [K] at positives."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    capacity = scores.numel()
    if capacity == 0 or gradient.numel() == 0:
        return gradient.zero_()
    scopes = scopes_of(logits, targets, per_image=offsets.numel() > 2)
    programs_in_scope = cdiv(scopes.num_candidates, BLOCK * BLOCKS_AT_ONCE)
    _transport_kernel[programs_in_scope * scopes.num_scopes,](
        scopes.logits,
        scopes.targets,
        scores,
        offsets,
        lines,
        cells,
        upstream,
        gradient,
        num_candidates=scopes.num_candidates,
        capacity=capacity,
        programs_in_scope=programs_in_scope,
        delta=representable(delta),
        INDEX=index_type(scopes),
        BLOCK=BLOCK,
        BLOCKS_AT_ONCE=BLOCKS_AT_ONCE,
        CELLS=CELLS,
        HARD=delta == 0,
        num_warps=1,
        **scope_arguments(scopes),
        **scopes.arguments(),
    )
    _positives_kernel[cdiv(capacity, TILE),](
        offsets,
        positions,
        updates,
        upstream,
        gradient,
        capacity=capacity,
        num_scopes=scopes.num_scopes,
        TILE=TILE,
        NUM_UPDATES=updates.shape[0],
        COMPUTE=TRITON_DTYPE[scores.dtype],
    )
    return gradient

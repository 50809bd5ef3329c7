"""AP Loss on the GPU: what lies between count and transport, in one pass over the sorted positives of a scope.

    err_i = b_i / (a_i + b_i) = 1 - prec_i
    best_i = min of err_k over p_k <= p_i      interpolation raises the precision: the minimum of the errors, 1 - q_i
    loss = mean best_i,   w_i = best_i / (b_i |P|),   update of positive i = -best_i / |P|

In ascending order the minimum is a running one: of positives with equal scores, errors are equal. Working with the
error instead of 1 - prec_i keeps its digits when it is small.

    symbol               meaning
    among [P]            a_i, from positives.py
    above [P]            b_i, from count.py
    share                1 / |P|, over the number of scopes that have a positive: the loss is a mean over these
    bends, lines         of finish.py

    owner of outputs     program s: everything of scope s
    accumulation         float32 (float64 for float64 logits); the loss and the lines float64
"""

import triton
import triton.language as tl
from torch import Tensor

from ...distributed import join_ranks
from ..arithmetic import number
from ..candidates import TRITON_DTYPE, scopes_of
from ..listing import find_positives, gather_positives
from .count import count
from .finish import BLOCK, WARPS, empty_bends, store_bends, store_lines, sum_scopes
from .kinks import make_kinks
from .positives import empty_state, sort
from .step import representable


@triton.jit
def _smaller(a, b):
    return tl.minimum(a, b)


@triton.jit(do_not_specialize=["capacity"])
def _error_kernel(
    sorted_ptr,
    offsets_ptr,
    num_ranked_ptr,
    lines_ptr,
    places_ptr,
    among_ptr,
    above_ptr,
    weights_ptr,
    updates_ptr,
    bends_ptr,
    loss_ptr,
    capacity,
    delta: tl.float64,
    BLOCK: tl.constexpr,
    INTERPOLATE: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Weights, updates, loss and lines of a scope."""
    scope = tl.program_id(0).to(tl.int64)
    delta = number(delta, tl.float64)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    num_positives = (last - first).to(tl.int32)
    value_ptr = lines_ptr + 2 * capacity + 4 * first
    sorted_ptr += first
    lines_ptr += 2 * first
    places_ptr += first
    among_ptr += first
    above_ptr += first
    weights_ptr += first
    updates_ptr += first
    bends_ptr += 2 * first
    share = 1 / ((last - first).to(COMPUTE) * tl.load(num_ranked_ptr).to(COMPUTE))
    loss = tl.full([], 0, tl.float64)
    best_before = tl.full([], float("inf"), COMPUTE)
    for start in range(0, num_positives, BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < num_positives
        above = tl.load(above_ptr + at, mask=there, other=0)
        error = above / (tl.load(among_ptr + at, mask=there, other=1) + above)
        best = error
        if INTERPOLATE:
            best = tl.minimum(tl.associative_scan(error, 0, _smaller), best_before)
            best_before = tl.minimum(tl.min(tl.where(there, error, float("inf"))), best_before)
            best += 0 * error  # a minimum hides NaN
        best = best * share
        loss += tl.sum(best.to(tl.float64))
        w = tl.where(above == 0, 0, best / above)
        tl.store(weights_ptr + at, w, mask=there)
        tl.store(updates_ptr + at, -best, mask=there)
        store_bends(sorted_ptr, lines_ptr, places_ptr, bends_ptr, w, at, there, capacity, delta, HARD)
    tl.store(loss_ptr + scope, loss.to(COMPUTE))
    tl.debug_barrier()  # other threads of the program have written the bends
    store_lines(bends_ptr, lines_ptr, value_ptr, num_positives, capacity, delta, BLOCK, HARD)


def forward(
    logits: Tensor,
    targets: Tensor,
    delta: float,
    interpolate: bool,
    per_image: bool,
    max_positives: int | None,
    group: str | None = None,
) -> tuple[Tensor, ...]:
    """(loss, fields of ranking.State)."""
    scopes = scopes_of(logits, targets, per_image)
    positives = find_positives(scopes, max_positives)
    arguments = {"delta": delta, "interpolate": interpolate}
    ranks = join_ranks(group, "ap_loss", arguments, logits, positives.scores.numel(), per_image)
    delta = representable(delta)
    positives, _, among = sort(gather_positives(positives, ranks), delta)
    kinks = make_kinks(positives, delta, max_positives)
    above = ranks.total_count(count(scopes, positives, kinks, delta))
    weights, updates = empty_state(above, 1, max_positives)
    losses = above.new_empty(scopes.num_scopes)
    if above.numel() > 0:
        _error_kernel[scopes.num_scopes,](
            positives.scores,
            positives.offsets,
            positives.num_ranked,
            kinks.lines,
            kinks.places,
            among,
            above,
            weights,
            updates,
            empty_bends(positives),
            losses,
            capacity=above.numel(),
            delta=delta,
            BLOCK=BLOCK,
            num_warps=WARPS,
            INTERPOLATE=interpolate,
            HARD=delta == 0,
            COMPUTE=TRITON_DTYPE[above.dtype],
        )
    else:
        losses.zero_()
    (loss,) = ranks.mean_over_scopes([sum_scopes(losses)], [weights, updates, kinks.lines[1:]], positives.offsets)
    positions, scores, offsets, _ = positives
    return loss, positions, scores, weights, updates, offsets, kinks.lines, kinks.cells

"""Transport: the gradient of every logit, g_j = sum_i w_i H(n_j - p_i) at the negatives, by search.

H is in step.py. g is piecewise linear in n_j, with kinks at p_i - delta and p_i + delta (for delta = 0: piecewise
constant, with steps at p_i). The table holds the sorted kinks, the value of g at each and its slope to the right of it,
both computed by the definition: a prefix sum would lose digits. The gradient of a negative is then looked up,
    g_j = value + slope (n_j - kink),   at the last kink that is not above n_j,
and written once, in the dtype of the logits, times the upstream gradient. A block of negatives that lies between the
last lower and the first upper kink, as all do at the start of training, needs no search.

    symbol               meaning
    q                    kinks: q < P is p_q - delta, q >= P is p_{q - P} + delta
    k                    positives that a kink is compared with
    table [3, 2 P]       kinks, values, slopes; the kinks of scope s begin at 2 offsets[s]
    updates [K, P]       of the positives, for each of K losses: the sum over losses of upstream [K] times these
                         is their gradient

    owner of outputs     _table_kernel (t, s): the entries of the kinks in tile t, wherever their rank puts them, and
                         the gradient of the positives in tile t;  _transport_kernel (b, s): the other logits of block b
    accumulation         float32 (float64 for float64 logits)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..candidates import TRITON_DTYPE, load_candidates, scopes_of
from .step import half_inverse, step

# Not yet measured on a GPU.
KINKS_BLOCK = 32  # with 64 the float64 form spilled
CANDIDATES_BLOCK = 1024


@triton.jit
def _table_kernel(
    scores_ptr,
    weights_ptr,
    offsets_ptr,
    table_ptr,
    positions_ptr,
    updates_ptr,
    upstream_ptr,
    gradient_ptr,
    num_positives,
    delta,
    half_inverse_delta,
    TILE: tl.constexpr,
    NUM_UPDATES: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Rank the kinks of a scope and evaluate transport at each; write the gradient of its positives."""
    tile, scope = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    num_in_scope = (last - first).to(tl.int32)
    num_kinks = num_in_scope if HARD else 2 * num_in_scope
    q = tile * TILE + tl.arange(0, TILE)
    if tile * TILE < num_kinks:
        i = first + tl.where(q < num_in_scope, q, q - num_in_scope)
        kink = tl.load(scores_ptr + i, mask=q < num_kinks, other=0)
        nan = 0 * kink
        if not HARD:
            kink = tl.where(q < num_in_scope, kink - delta, kink + delta)
        kink = tl.where(kink != kink, float("inf"), kink)  # NaN has a rank too, or two kinks would share an entry

        rank = tl.zeros([TILE], tl.int32)
        value = tl.zeros([TILE], COMPUTE)
        slope = tl.zeros([TILE], COMPUTE)
        for start in range(0, num_in_scope, TILE):
            k = start + tl.arange(0, TILE)
            p = tl.load(scores_ptr + first + k, mask=k < num_in_scope, other=float("inf"))
            w = tl.load(weights_ptr + first + k, mask=k < num_in_scope, other=0)
            nan += tl.sum(tl.where(k < num_in_scope, 0 * p, 0) + 0 * w)
            p = tl.where(p != p, float("inf"), p)
            lower = p if HARD else p - delta
            before = (lower[None, :] < kink[:, None]) | ((lower[None, :] == kink[:, None]) & (k[None, :] < q[:, None]))
            rank += tl.sum((before & (k < num_in_scope)[None, :]).to(tl.int32), 1)
            if HARD:
                value += tl.sum((kink[:, None] >= p[None, :]).to(COMPUTE) * w[None, :], 1)
            else:
                upper = p + delta
                upper_q = k + num_in_scope
                before = (upper[None, :] < kink[:, None]) | (
                    (upper[None, :] == kink[:, None]) & (upper_q[None, :] < q[:, None])
                )
                rank += tl.sum((before & (k < num_in_scope)[None, :]).to(tl.int32), 1)
                h = step(kink[:, None] - p[None, :], half_inverse_delta, HARD)
                value += tl.sum(h * w[None, :], 1)
                active = (lower[None, :] <= kink[:, None]) & (kink[:, None] < upper[None, :])
                slope += tl.sum(active.to(COMPUTE) * w[None, :], 1)

        entry = 2 * first + rank
        tl.store(table_ptr + entry, kink, mask=q < num_kinks)
        tl.store(table_ptr + 2 * num_positives + entry, value + nan, mask=q < num_kinks)
        tl.store(table_ptr + 4 * num_positives + entry, slope * half_inverse_delta, mask=q < num_kinks)

        update = tl.zeros([TILE], COMPUTE)
        for loss in tl.static_range(NUM_UPDATES):
            upstream = tl.load(upstream_ptr + loss).to(COMPUTE)
            update += upstream * tl.load(updates_ptr + loss * num_positives + i, mask=q < num_in_scope, other=0)
        at = tl.load(positions_ptr + i, mask=q < num_in_scope, other=-1)  # -1: a positive of another rank
        tl.store(gradient_ptr + at, update.to(gradient_ptr.dtype.element_ty), mask=at >= 0)


@triton.jit
def _transport_kernel(
    logits_ptr,
    targets_ptr,
    offsets_ptr,
    table_ptr,
    upstream_ptr,
    gradient_ptr,
    num_candidates,
    num_positives,
    num_search_steps,
    BLOCK: tl.constexpr,
    HARD: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of a block of logits, but for its positives."""
    block, scope = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    num_in_scope = (last - first).to(tl.int32)
    num_kinks = num_in_scope if HARD else 2 * num_in_scope
    kinks_ptr = table_ptr + 2 * first
    start = tl.cast(block, tl.int64) * BLOCK
    positions, in_range, n, negative, positive = load_candidates(
        logits_ptr, targets_ptr, scope, start, num_candidates, BLOCK, NUM_CLASSES, LABELS, COMPUTE
    )

    gradient = tl.zeros([BLOCK], COMPUTE)
    if num_in_scope > 0:
        relevant = negative & ((n < tl.load(kinks_ptr)) == 0)
        # How many kinks are at or below n. Between the last lower and the first upper kink it is the number of lower
        # ones; when two of them have changed places there is no such interval, and the test fails.
        kinks_below = tl.where(relevant, num_in_scope, 0)
        between = (n >= tl.load(kinks_ptr + num_in_scope - 1)) & (
            n < tl.load(kinks_ptr + num_in_scope, mask=num_in_scope < num_kinks, other=float("inf"))
        )
        if tl.max((relevant & (between == 0)).to(tl.int32)) > 0:
            kinks_below = tl.zeros([BLOCK], tl.int32)
            for search_step in range(0, num_search_steps):
                trial = kinks_below + (1 << (num_search_steps - 1 - search_step))
                reachable = relevant & (trial <= num_kinks)
                kink = tl.load(kinks_ptr + trial - 1, mask=reachable, other=float("inf"))
                kinks_below = tl.where(reachable & (kink <= n), trial, kinks_below)
        found = kinks_below > 0
        entry = kinks_ptr + kinks_below - 1
        gradient = tl.load(entry + 2 * num_positives, mask=found, other=0)
        if not HARD:
            kink = tl.load(entry, mask=found, other=0)
            slope = tl.load(entry + 4 * num_positives, mask=found, other=0)
            gradient += slope * tl.where(found, n - kink, 0)
        gradient += tl.where(relevant, 0 * n, 0)  # comparisons have hidden a NaN
    gradient *= tl.load(upstream_ptr).to(COMPUTE)
    tl.store(gradient_ptr + positions, gradient.to(gradient_ptr.dtype.element_ty), mask=in_range & (positive == 0))


def backward(
    logits: Tensor,
    targets: Tensor,
    upstream: Tensor,
    positions: Tensor,
    scores: Tensor,
    weights: Tensor,
    updates: Tensor,
    offsets: Tensor,
    delta: float,
) -> Tensor:
    """Gradient of the logits, in their dtype: upstream[0] g at negatives, updates times upstream [K] at positives."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    num_positives = scores.numel()
    if num_positives == 0 or gradient.numel() == 0:
        return gradient.zero_()
    scopes = scopes_of(logits, targets, per_image=offsets.numel() > 2)
    hard = delta == 0
    num_kinks = num_positives if hard else 2 * num_positives
    table = torch.empty(6 * num_positives, dtype=scores.dtype, device=scores.device)
    constants = {"HARD": hard, "COMPUTE": TRITON_DTYPE[scores.dtype]}
    _table_kernel[triton.cdiv(num_kinks, KINKS_BLOCK), scopes.num_scopes](
        scores,
        weights,
        offsets,
        table,
        positions,
        updates,
        upstream,
        gradient,
        num_positives=num_positives,
        delta=delta,
        half_inverse_delta=half_inverse(delta),
        TILE=KINKS_BLOCK,
        NUM_UPDATES=updates.shape[0],
        **constants,
    )
    _transport_kernel[triton.cdiv(scopes.num_candidates, CANDIDATES_BLOCK), scopes.num_scopes](
        scopes.logits,
        scopes.targets,
        offsets,
        table,
        upstream,
        gradient,
        num_candidates=scopes.num_candidates,
        num_positives=num_positives,
        num_search_steps=num_kinks.bit_length(),
        BLOCK=CANDIDATES_BLOCK,
        NUM_CLASSES=scopes.num_classes,
        LABELS=scopes.labels,
        **constants,
    )
    return gradient

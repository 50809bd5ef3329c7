"""What follows the errors: the sums that are the losses, and the lines that backward looks up.

The gradient of negatives, g(n) = sum_i w_i H(n - p_i), is piecewise linear: it bends at the kinks of kinks.py, by
w_i / (2 delta) at p_i - delta and as much back at p_i + delta (for delta = 0 it jumps by w_i at p_i). A prefix sum over
the kinks gives its value at each, and its slope right of it. What rounding has added to a kink is put right in the
value there: bend times rounding.

    symbol               meaning
    terms [K, P]         shares of positive i in the K losses
    losses               K of [S]: their sums over each scope
    bends [2, 2 P]       change of slope at each kink, and this times what rounding has added to the kink
    lines [3, 2 P]       kinks; then [2 P, 2] value at each and slope right of it, side by side: one look-up

    owner of outputs     program s: losses, bends and lines of scope s
    accumulation         float64, in a fixed order
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import number
from ..listing import Positives
from .kinks import Kinks

BLOCK, WARPS = 1024, 8  # one program a scope, bound by the latency of its steps; of 16 warps some spilled


@triton.jit
def store_bends(
    sorted_ptr,
    kinks_ptr,
    places_ptr,
    bends_ptr,
    w,
    at,
    there,
    capacity,
    delta,
    HARD: tl.constexpr,
):
    """Bends at the kinks of the positives in places `at` of the scope that the pointers are to; their weights are w."""
    lower = tl.load(places_ptr + at, mask=there, other=0)
    if HARD:
        tl.store(bends_ptr + lower, w.to(tl.float64), mask=there)
    else:
        p = tl.load(sorted_ptr + at, mask=there, other=0).to(tl.float64)
        upper = tl.load(places_ptr + capacity + at, mask=there, other=0)
        begin = tl.load(kinks_ptr + lower, mask=there, other=0).to(tl.float64)
        end = tl.load(kinks_ptr + upper, mask=there, other=0).to(tl.float64)
        bend = w.to(tl.float64) / (2 * delta)
        added = begin - p + delta  # p - delta would have no digits of delta where p is large
        tl.store(bends_ptr + lower, bend, mask=there)
        tl.store(bends_ptr + 2 * capacity + lower, bend * added, mask=there)
        # A window that is longer, by rounding of large scores, has none inside: store_lines takes it as 4 delta.
        added += tl.minimum(end - begin, 4 * delta) - 2 * delta
        tl.store(bends_ptr + upper, -bend, mask=there)
        tl.store(bends_ptr + 2 * capacity + upper, -bend * added, mask=there)


@triton.jit
def store_lines(
    bends_ptr,
    lines_ptr,
    value_ptr,
    num_positives,
    capacity,
    delta,
    BLOCK: tl.constexpr,
    HARD: tl.constexpr,
):
    """Value and slope at the kinks of the scope that the pointers are to, from the first up."""
    num_kinks = num_positives if HARD else 2 * num_positives
    slope_before = tl.full([], 0, tl.float64)
    value_before = tl.full([], 0, tl.float64)
    for start in range(0, num_kinks, BLOCK):
        m = start + tl.arange(0, BLOCK)
        mask = m < num_kinks
        bend = tl.load(bends_ptr + m, mask=mask, other=0)
        slope = slope_before + tl.cumsum(bend, 0)
        if HARD:
            tl.store(value_ptr + 2 * m, slope, mask=mask)
        else:
            kink = tl.load(lines_ptr + m, mask=mask, other=0).to(tl.float64)
            left = tl.load(lines_ptr + m - 1, mask=mask & (m > 0), other=0).to(tl.float64)
            # A wider gap lies in no window: there is no slope but that of rounding.
            gap = tl.where(m > 0, tl.minimum(kink - left, 4 * delta), 0)
            step = (slope - bend) * gap + tl.load(bends_ptr + 2 * capacity + m, mask=mask, other=0)
            tl.store(value_ptr + 2 * m, value_before + tl.cumsum(step, 0), mask=mask)
            tl.store(value_ptr + 2 * m + 1, slope, mask=mask)
            value_before += tl.sum(step)
        slope_before += tl.sum(bend)


@triton.jit
def load_lines(value_ptr, m, mask, HARD: tl.constexpr, COMPUTE: tl.constexpr):
    """(value at kink m, slope right of it); NaN and 0 where `mask` is false."""
    NAN: tl.constexpr = 0x7FC00000
    if HARD:
        value = tl.load(value_ptr + 2 * m, mask=mask, other=float("nan"))
        return value, tl.zeros_like(value)
    if COMPUTE == tl.float32:
        # Both by one look-up of 64 bits.
        pair = tl.load(value_ptr.to(tl.pointer_type(tl.int64), bitcast=True) + m, mask=mask, other=NAN)
        return pair.to(tl.int32).to(COMPUTE, bitcast=True), (pair >> 32).to(tl.int32).to(COMPUTE, bitcast=True)
    value = tl.load(value_ptr + 2 * m, mask=mask, other=float("nan"))
    return value, tl.load(value_ptr + 2 * m + 1, mask=mask, other=0)


@triton.jit(do_not_specialize=["capacity"])
def _finish_kernel(
    sorted_ptr,
    offsets_ptr,
    lines_ptr,
    places_ptr,
    weights_ptr,
    terms_ptr,
    bends_ptr,
    first_loss_ptr,
    second_loss_ptr,
    capacity,
    delta: tl.float64,
    NUM_LOSSES: tl.constexpr,
    BLOCK: tl.constexpr,
    HARD: tl.constexpr,
):
    """Losses and lines of a scope."""
    scope = tl.program_id(0).to(tl.int64)
    delta = number(delta, tl.float64)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    num_positives = (last - first).to(tl.int32)
    value_ptr = lines_ptr + 2 * capacity + 4 * first
    sorted_ptr += first
    lines_ptr += 2 * first
    places_ptr += first
    weights_ptr += first
    terms_ptr += first
    bends_ptr += 2 * first
    for loss in tl.static_range(NUM_LOSSES):
        total = tl.full([], 0, tl.float64)
        for start in range(0, num_positives, BLOCK):
            at = start + tl.arange(0, BLOCK)
            there = at < num_positives
            total += tl.sum(tl.load(terms_ptr + loss * capacity + at, mask=there, other=0).to(tl.float64))
        loss_ptr = first_loss_ptr if loss == 0 else second_loss_ptr
        tl.store(loss_ptr + scope, total.to(loss_ptr.dtype.element_ty))
    for start in range(0, num_positives, BLOCK):
        at = start + tl.arange(0, BLOCK)
        w = tl.load(weights_ptr + at, mask=at < num_positives, other=0)
        store_bends(sorted_ptr, lines_ptr, places_ptr, bends_ptr, w, at, at < num_positives, capacity, delta, HARD)
    tl.debug_barrier()  # other threads of the program have written the bends
    store_lines(bends_ptr, lines_ptr, value_ptr, num_positives, capacity, delta, BLOCK, HARD)


def finish(positives: Positives, kinks: Kinks, weights: Tensor, terms: Tensor, delta: float) -> list[Tensor]:
    """K losses, one or two, from weights [P] and terms [K, P]; completes the lines of `kinks`."""
    num_losses, num_scopes = terms.shape[0], positives.offsets.numel() - 1
    losses = [weights.new_empty(num_scopes) for _ in range(num_losses)]
    if weights.numel() == 0:
        return [weights.new_zeros(()) for _ in losses]
    _finish_kernel[num_scopes,](
        positives.scores,
        positives.offsets,
        kinks.lines,
        kinks.places,
        weights,
        terms,
        empty_bends(positives),
        losses[0],
        losses[-1],
        capacity=weights.numel(),
        delta=delta,
        NUM_LOSSES=num_losses,
        BLOCK=BLOCK if delta > 0 else BLOCK // 2,  # the whole spills on sm_90
        num_warps=WARPS,
        HARD=delta == 0,
    )
    return [sum_scopes(loss) for loss in losses]


def empty_bends(positives: Positives) -> Tensor:
    """Bends for a kernel to write."""
    return torch.empty(2, 2 * positives.scores.numel(), dtype=torch.float64, device=positives.scores.device)


def sum_scopes(losses: Tensor) -> Tensor:
    """A loss from its shares of every scope, [S]."""
    return losses.reshape(()) if losses.numel() == 1 else losses.sum()

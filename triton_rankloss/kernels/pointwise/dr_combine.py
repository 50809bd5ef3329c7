"""From the partial sums of DR Loss to its value and the state for backward; symbols are those of dr.py.

    pbar = 1/2 + sum w c / sum w,   sum exp(k (p - pbar)) = sum w 2^(rate (shift - (pbar - 1/2)))
of every scope, positives and negatives, over the partial sums of all programs, which are first brought to one shift.

    owner of outputs     _combine_kernel, one program: loss and state
    accumulation         float64, in a fixed order
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import log1p, reciprocal

MAX_ROWS = 8192  # partial sums that are added up at once, 16 a thread: a program waits for memory once a kind


@triton.jit
def _mean(
    partial_ptr,
    state_ptr,
    num_scopes,
    num_programs,
    rate,
    default,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    SCOPES: tl.constexpr,
):
    """(has any, mean, sum of exp(k (p - mean)) or 1 if there is none) of every scope, in float64."""
    stride = tl.cast(num_scopes, tl.int64) * num_programs
    s = tl.arange(0, SCOPES)[None, :]
    exponent = tl.zeros([SCOPES], tl.float64)
    if SHIFTED:
        exponent += float("-inf")
        for start in range(0, num_programs, ROWS):
            row = start + tl.arange(0, ROWS)[:, None]
            mask = (row < num_programs) & (s < num_scopes)
            shift = tl.load(partial_ptr + s * num_programs + row, mask=mask, other=0).to(tl.float64)
            exponent = tl.maximum(exponent, tl.max(tl.where(mask, rate * shift, float("-inf")), 0))
    sum_w = tl.zeros([ROWS, SCOPES], tl.float64)
    sum_wc = tl.zeros([ROWS, SCOPES], tl.float64)
    for start in range(0, num_programs, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        mask = (row < num_programs) & (s < num_scopes)
        at = partial_ptr + s * num_programs + row
        w = tl.load(at + stride, mask=mask, other=0).to(tl.float64)
        wc = tl.load(at + 2 * stride, mask=mask, other=0).to(tl.float64)
        if SHIFTED:
            shift = tl.load(at, mask=mask, other=0).to(tl.float64)
            kept = tl.where(mask, tl.exp2(rate * shift - exponent[None, :]), 0)
            w, wc = w * kept, wc * kept
        sum_w += w
        sum_wc += wc
    total, total_c = tl.sum(sum_w, 0), tl.sum(sum_wc, 0)
    has_any = total != 0  # NaN is any
    mean = tl.where(has_any, 0.5 + total_c * (1 / tl.where(has_any, total, 1)), default)
    # Relative to the mean as backward will read it, which is in the dtype of the state.
    total *= tl.exp2(exponent - rate * (mean.to(state_ptr.dtype.element_ty).to(tl.float64) - 0.5))
    return has_any, mean, tl.where(has_any, total, 1)


@triton.jit
def _combine_kernel(
    partial_ptr,
    loss_ptr,
    state_ptr,
    num_scopes,
    num_programs,
    positive_rate: tl.float64,
    negative_rate: tl.float64,
    margin: tl.float64,
    sharpness: tl.float64,
    scale: tl.float64,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    SCOPES: tl.constexpr,
):
    """Loss and state."""
    any_positive, positive_mean, positive_total = _mean(
        partial_ptr, state_ptr, num_scopes, num_programs, positive_rate, 1.0, SHIFTED, ROWS, SCOPES
    )
    negatives_ptr = partial_ptr + 3 * tl.cast(num_scopes, tl.int64) * num_programs
    any_negative, negative_mean, negative_total = _mean(
        negatives_ptr, state_ptr, num_scopes, num_programs, negative_rate, 0.0, SHIFTED, ROWS, SCOPES
    )
    has_candidate = (any_positive | any_negative).to(tl.float64)
    share = has_candidate / tl.maximum(tl.sum(has_candidate), 1)
    excess = sharpness * (negative_mean - positive_mean + margin)
    e = tl.exp(-tl.abs(excess))
    softplus = tl.maximum(excess, 0) + log1p(e)
    tl.store(loss_ptr, tl.sum(share * softplus) * scale)
    slope = share * sharpness * scale * tl.where(excess < 0, e, 1) * reciprocal(1 + e)
    s = tl.arange(0, SCOPES)
    mask = s < num_scopes
    tl.store(state_ptr + s, -slope / positive_total, mask=mask)
    tl.store(state_ptr + num_scopes + s, positive_mean, mask=mask)
    tl.store(state_ptr + 2 * num_scopes + s, positive_mean, mask=mask)
    tl.store(state_ptr + 3 * num_scopes + s, slope / negative_total, mask=mask)
    tl.store(state_ptr + 4 * num_scopes + s, negative_mean, mask=mask)
    tl.store(state_ptr + 5 * num_scopes + s, negative_mean, mask=mask)


def combine_sums(
    partial: Tensor,
    rates: tuple[float, float],
    margin: float,
    sharpness: float,
    tau: float,
    shifted: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(loss, state [2, 3, S]) from partial [2, 3, S, R]; zeros for R = 0."""
    num_scopes, num_programs = partial.shape[2:]
    allocate = partial.new_zeros if partial.numel() == 0 else partial.new_empty
    loss, state = allocate((), dtype=dtype), allocate((2, 3, num_scopes), dtype=dtype)
    if partial.numel() > 0:
        positive_rate, negative_rate = rates
        tile = triton.next_power_of_2(num_scopes)
        _combine_kernel[1,](
            partial,
            loss,
            state,
            num_scopes=num_scopes,
            num_programs=num_programs,
            positive_rate=positive_rate,
            negative_rate=negative_rate,
            margin=margin,
            sharpness=sharpness,
            scale=tau / sharpness,
            SHIFTED=shifted,
            ROWS=max(1, MAX_ROWS // tile),
            SCOPES=tile,
            num_warps=16,
        )
    return loss, state

"""The sums of DR Loss over all candidates, of every program; mathematics and symbols are those of dr.py.

owner of outputs     _sums_kernel (r, s): partial[:, s, r], and background of its blocks of scope s
accumulation         float32 (float64 for float64 logits), in a fixed order
"""

import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ..arithmetic import exp_minus_abs, number, reciprocal
from ..blocks import (
    block_arguments,
    is_background,
    kinds_of_block,
    load_block,
    programs_of,
    scope_arguments,
    sum_fours,
)
from ..candidates import scopes_of


@triton.jit
def probability(x):
    """(c = sigmoid(x) - 1/2, the derivative of sigmoid)."""
    e = exp_minus_abs(x)
    r = reciprocal(1 + e)
    q = e * r
    return tl.where(x < 0, q - 0.5, 0.5 - q), q * r


@triton.jit
def _add_shifted(shift, sum_w, sum_wc, c, mask, rate):
    """(shift, sum of w, sum of w c) with the masked c added; the shift is the c that weighs most so far."""
    lowest = tl.minimum(shift, tl.where(mask, c, 0.5))
    highest = tl.maximum(shift, tl.where(mask, c, -0.5))
    new_shift = tl.where(rate < 0, lowest, highest)
    w = tl.where(mask, tl.exp2(rate * (c - new_shift)), 0)
    kept = tl.exp2(rate * (shift - new_shift))
    return new_shift, sum_w * kept + w, sum_wc * kept + tl.where(mask, w * c, 0)


@triton.jit
def _sum_lanes(shift, sum_w, sum_wc, rate, SHIFTED: tl.constexpr):
    """(shift, sum of w, sum of w c) over all lanes of a program; the shift is the one that weighs most."""
    new_shift = tl.full([], 0, sum_w.dtype)
    if SHIFTED:
        new_shift += tl.max(rate * shift) / rate
        kept = tl.exp2(rate * (shift - new_shift))
        sum_w, sum_wc = sum_w * kept, sum_wc * kept
    return new_shift, tl.sum(sum_w), tl.sum(sum_wc)


@triton.jit
def _sums_kernel(
    logits_ptr,
    targets_ptr,
    background_ptr,
    partial_ptr,
    num_candidates,
    num_targets,
    positive_rate: tl.float64,
    negative_rate: tl.float64,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    SHIFTED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums of w and w c over every num_programs-th block of a scope."""
    program, scope = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_programs, num_blocks = tl.num_programs(0), tl.cdiv(num_candidates, BLOCK)
    logits_ptr += tl.multiple_of(scope * num_candidates, ALIGNMENT)
    targets_ptr += scope * num_targets
    background_ptr += scope * num_blocks
    positive_rate, negative_rate = number(positive_rate, COMPUTE), number(negative_rate, COMPUTE)
    background_w = tl.zeros([BLOCK // 4], COMPUTE)
    background_wc = tl.zeros([BLOCK // 4], COMPUTE)
    # The shifts that weigh least, of c in [-1/2, 1/2]; without SHIFTED the shift is 0.
    positive_shift = tl.full([PART], 0.5, COMPUTE)
    positive_w = tl.zeros([PART], COMPUTE)
    positive_wc = tl.zeros([PART], COMPUTE)
    negative_shift = tl.full([PART], -0.5, COMPUTE)
    negative_w = tl.zeros([PART], COMPUTE)
    negative_wc = tl.zeros([PART], COMPUTE)
    for block in range(program, num_blocks, num_programs):
        start = tl.cast(block, INDEX) * BLOCK
        x = load_block(logits_ptr, start, num_candidates, BLOCK)
        background = is_background(targets_ptr, start, num_candidates, BLOCK, NUM_CLASSES, LABELS)
        tl.store(background_ptr + block, background)
        if background & (not SHIFTED):
            c, _ = probability(x.to(COMPUTE))
            w = tl.exp2(negative_rate * c)
            background_w += sum_fours(w)
            background_wc += sum_fours(w * c)
        else:
            for part in range(start, tl.minimum(start + BLOCK, num_candidates), PART):
                is_negative, is_positive = kinds_of_block(targets_ptr, part, num_candidates, PART, NUM_CLASSES, LABELS)
                c_part, _ = probability(load_block(logits_ptr, part, num_candidates, PART).to(COMPUTE))
                if SHIFTED:
                    positive_shift, positive_w, positive_wc = _add_shifted(
                        positive_shift, positive_w, positive_wc, c_part, is_positive, positive_rate
                    )
                    negative_shift, negative_w, negative_wc = _add_shifted(
                        negative_shift, negative_w, negative_wc, c_part, is_negative, negative_rate
                    )
                else:
                    weight = tl.exp2(tl.where(is_positive, positive_rate, negative_rate) * c_part)
                    positive_w += tl.where(is_positive, weight, 0)
                    positive_wc += tl.where(is_positive, weight * c_part, 0)
                    negative_w += tl.where(is_negative, weight, 0)
                    negative_wc += tl.where(is_negative, weight * c_part, 0)
    stride = tl.num_programs(1).to(tl.int64) * num_programs
    own_ptr = partial_ptr + scope * num_programs + program
    new_shift, sum_w, sum_wc = _sum_lanes(positive_shift, positive_w, positive_wc, positive_rate, SHIFTED)
    tl.store(own_ptr, new_shift)
    tl.store(own_ptr + stride, sum_w)
    tl.store(own_ptr + 2 * stride, sum_wc)
    new_shift, sum_w, sum_wc = _sum_lanes(negative_shift, negative_w, negative_wc, negative_rate, SHIFTED)
    tl.store(own_ptr + 3 * stride, new_shift)
    tl.store(own_ptr + 4 * stride, sum_w + tl.sum(background_w))
    tl.store(own_ptr + 5 * stride, sum_wc + tl.sum(background_wc))


def sum_candidates(
    logits: Tensor,
    targets: Tensor,
    background: Tensor,
    rates: tuple[float, float],
    shifted: bool,
    per_image: bool,
) -> Tensor:
    """Partial sums [2, 3, S, R]; R = 0 without logits. Fills `background`."""
    dtype = result_dtype(logits)
    if logits.numel() == 0:
        return logits.new_empty((2, 3, logits.shape[0] if per_image else 1, 0), dtype=dtype)
    scopes = scopes_of(logits, targets, per_image)
    partial = logits.new_empty((2, 3, scopes.num_scopes, programs_of(scopes)), dtype=dtype)
    positive_rate, negative_rate = rates
    _sums_kernel[partial.shape[3], scopes.num_scopes](
        scopes.logits,
        scopes.targets,
        background,
        partial,
        positive_rate=positive_rate,
        negative_rate=negative_rate,
        SHIFTED=shifted,
        **scope_arguments(scopes),
        **block_arguments(scopes),
    )
    return partial

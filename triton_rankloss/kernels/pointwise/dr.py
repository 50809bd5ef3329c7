"""DR Loss on the GPU: one pass for the sums under both distributions, one for the gradient.

    p = sigmoid(x);   pbar = sum w p / sum w over the positives, w = exp(k (p - shift)), k = -1 / lambda+,
                      and over the negatives, k = 1 / lambda-
    loss = tau / L log(1 + exp(L (pbar- - pbar+ + margin))), averaged over the scopes that have a candidate
    d loss / dx = coefficient exp(k (p - mean)) (1 + k (p - mean)) p (1 - p),   mean = pbar of its kind,
    coefficient = -+ share tau sigmoid(L (...)) / sum exp(k (p - mean))

Kernels work with c = p - 1/2 = +-(1/2 - sigmoid(-|x|)). This keeps the digits of 1 - p, which exp(k p) needs and p near
1 would lose. Any shift gives the same pbar. With shift = 1/2 the forward pass needs no running maximum: as long as
|k| <= 96, exponents stay within |k| / 2, the sum of even 2^33 terms stays far from the overflow of float32, and the
largest term far from its underflow. The default lambda- gives k = 12.5. For smaller lambdas each lane takes the c that
weighs most so far as its shift, and rescales its sums when that changes. The backward pass takes the mean as the shift:
k (p - mean) is at most the entropy of the weights, log N, and small where the weights are large, so that the exponents
of large weights are rounded least.

    symbol               meaning
    c, shift             of p, less 1/2
    rate                 k / ln 2: w = 2^(rate (c - shift)), one instruction
    partial [6, S, R]    shift, sum of w, sum of w c of the positives, then of the negatives, of every R-th block of s
    state [2, 3, S]      of positives and negatives, (coefficient, shift, mean) of scope s; shift = mean

    owner of outputs     _sums_kernel (r, s): partial[:, s, r];  dr_combine.py: loss and state;
                         _gradient_kernel (b, s): the gradient of block b of scope s
    accumulation         in a program in float32 (float64 for float64 logits), across programs in float64
    order of every sum   fixed by the shapes alone: results are bitwise the same on any device, in any run
    process group        dr_group.py adds up the partial sums of each rank, and dr_combine.py those of all
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...distributed import world_size
from ...dtypes import result_dtype
from ..arithmetic import exponential, number, reciprocal
from ..candidates import load_candidates, scopes_of
from .dr_combine import combine_sums
from .dr_group import gather_sums, mean_over_images

# Not yet measured on a GPU. 8 logits a thread: two 16-byte loads of float32, one of half precision, in about 60
# registers; with 16 a thread needs 138, and only 3 programs fit on a multiprocessor.
BLOCK = 1024
MAX_PROGRAMS = 1024  # that read the logits: several for each multiprocessor of today's GPUs
LARGEST_CENTERED = 96.0  # |k| up to which the forward pass keeps the shift at 1/2


@triton.jit
def _probability(x):
    """(c = sigmoid(x) - 1/2, the derivative of sigmoid)."""
    e = exponential(-tl.abs(x))
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
def _store_sums(partial_ptr, stride, shift, sum_w, sum_wc, rate, SHIFTED: tl.constexpr):
    """Store the sums over all lanes of a program, relative to the shift that weighs most."""
    if SHIFTED:
        new_shift = tl.max(rate * shift) / rate
        kept = tl.exp2(rate * (shift - new_shift))
        sum_w, sum_wc = sum_w * kept, sum_wc * kept
        tl.store(partial_ptr, new_shift)
    else:
        tl.store(partial_ptr, 0)
    tl.store(partial_ptr + stride, tl.sum(sum_w))
    tl.store(partial_ptr + 2 * stride, tl.sum(sum_wc))


@triton.jit
def _sums_kernel(
    logits_ptr,
    targets_ptr,
    partial_ptr,
    num_candidates,
    positive_rate: tl.float64,
    negative_rate: tl.float64,
    BLOCK: tl.constexpr,
    SHIFTED: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums of w and w c over every num_programs-th block of a scope."""
    program, scope = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_programs = tl.num_programs(0)
    positive_rate, negative_rate = number(positive_rate, COMPUTE), number(negative_rate, COMPUTE)
    # The shifts that weigh least, of c in [-1/2, 1/2]; without SHIFTED the shift is 0.
    positive_shift = tl.full([BLOCK], 0.5, COMPUTE)
    positive_w = tl.zeros([BLOCK], COMPUTE)
    positive_wc = tl.zeros([BLOCK], COMPUTE)
    negative_shift = tl.full([BLOCK], -0.5, COMPUTE)
    negative_w = tl.zeros([BLOCK], COMPUTE)
    negative_wc = tl.zeros([BLOCK], COMPUTE)
    for block in range(program, tl.cdiv(num_candidates, BLOCK), num_programs):
        start = tl.cast(block, tl.int64) * BLOCK
        _, _, x, negative, positive = load_candidates(
            logits_ptr, targets_ptr, scope, start, num_candidates, BLOCK, NUM_CLASSES, LABELS, COMPUTE
        )
        c, _ = _probability(x)
        if SHIFTED:
            positive_shift, positive_w, positive_wc = _add_shifted(
                positive_shift, positive_w, positive_wc, c, positive, positive_rate
            )
            negative_shift, negative_w, negative_wc = _add_shifted(
                negative_shift, negative_w, negative_wc, c, negative, negative_rate
            )
        else:
            w = tl.exp2(tl.where(positive, positive_rate, negative_rate) * c)
            positive_w += tl.where(positive, w, 0)
            positive_wc += tl.where(positive, w * c, 0)
            negative_w += tl.where(negative, w, 0)
            negative_wc += tl.where(negative, w * c, 0)
    stride = tl.num_programs(1).to(tl.int64) * num_programs
    own_ptr = partial_ptr + scope * num_programs + program
    _store_sums(own_ptr, stride, positive_shift, positive_w, positive_wc, positive_rate, SHIFTED)
    _store_sums(own_ptr + 3 * stride, stride, negative_shift, negative_w, negative_wc, negative_rate, SHIFTED)


@triton.jit
def _gradient_kernel(
    logits_ptr,
    targets_ptr,
    state_ptr,
    upstream_ptr,
    gradient_ptr,
    num_candidates,
    positive_k: tl.float64,
    negative_k: tl.float64,
    BLOCK: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of a block of logits."""
    block, scope = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_scopes = tl.num_programs(1)
    start = tl.cast(block, tl.int64) * BLOCK
    positions, in_scope, x, negative, positive = load_candidates(
        logits_ptr, targets_ptr, scope, start, num_candidates, BLOCK, NUM_CLASSES, LABELS, COMPUTE
    )
    upstream = tl.load(upstream_ptr).to(COMPUTE)
    own_ptr = state_ptr + scope
    coefficient = tl.where(positive, tl.load(own_ptr), tl.load(own_ptr + 3 * num_scopes)) * upstream
    mean = tl.where(positive, tl.load(own_ptr + 2 * num_scopes), tl.load(own_ptr + 5 * num_scopes))
    k = tl.where(positive, number(positive_k, COMPUTE), number(negative_k, COMPUTE))
    c, slope = _probability(x)
    exponent = k * (c - (mean - 0.5))
    gradient = coefficient * exponential(exponent) * (1 + exponent) * slope
    gradient = tl.where(positive | negative, gradient, 0)
    tl.store(gradient_ptr + positions, gradient.to(gradient_ptr.dtype.element_ty), mask=in_scope)


def forward(
    logits: Tensor,
    targets: Tensor,
    margin: float,
    pos_lambda: float,
    neg_lambda: float,
    L: float,
    tau: float,
    per_image: bool,
    group: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, state [2, 3, S])."""
    shifted = max(1 / pos_lambda, 1 / neg_lambda) > LARGEST_CENTERED
    rates = -1 / (pos_lambda * math.log(2)), 1 / (neg_lambda * math.log(2))
    partial = _sum_parts(logits, targets, rates, shifted, per_image)
    if group is not None and not per_image:
        partial = gather_sums(partial, (-1 / pos_lambda, 1 / neg_lambda), group)
    loss, state = combine_sums(partial, rates, margin, L, tau, shifted, result_dtype(logits))
    if group is None:
        return loss, state
    if per_image:
        return mean_over_images(loss, state, partial, group)
    state[:, 0] *= world_size(group)
    return loss, state


def _sum_parts(logits: Tensor, targets: Tensor, rates: tuple[float, float], shifted: bool, per_image: bool) -> Tensor:
    """Partial sums [2, 3, S, R]; R = 0 without logits."""
    dtype = result_dtype(logits)
    if logits.numel() == 0:
        return logits.new_empty((2, 3, logits.shape[0] if per_image else 1, 0), dtype=dtype)
    scopes = scopes_of(logits, targets, per_image)
    num_programs = min(triton.cdiv(scopes.num_candidates, BLOCK), max(1, MAX_PROGRAMS // scopes.num_scopes))
    partial = logits.new_empty((2, 3, scopes.num_scopes, num_programs), dtype=dtype)
    positive_rate, negative_rate = rates
    _sums_kernel[num_programs, scopes.num_scopes](
        scopes.logits,
        scopes.targets,
        partial,
        num_candidates=scopes.num_candidates,
        positive_rate=positive_rate,
        negative_rate=negative_rate,
        BLOCK=BLOCK,
        SHIFTED=shifted,
        **scopes.arguments(),
    )
    return partial


def backward(
    logits: Tensor, targets: Tensor, state: Tensor, upstream: Tensor, pos_lambda: float, neg_lambda: float
) -> Tensor:
    """Gradient of the logits."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if logits.numel() == 0:
        return gradient
    scopes = scopes_of(logits, targets, per_image=state.shape[2] > 1)
    _gradient_kernel[triton.cdiv(scopes.num_candidates, BLOCK), scopes.num_scopes](
        scopes.logits,
        scopes.targets,
        state,
        upstream,
        gradient,
        num_candidates=scopes.num_candidates,
        positive_k=-1 / pos_lambda,
        negative_k=1 / neg_lambda,
        BLOCK=BLOCK,
        **scopes.arguments(),
    )
    return gradient

"""DR Loss on the GPU: one pass for the sums under both distributions, one for the gradient.

    p = sigmoid(x);   pbar = sum w p / sum w over the positives, w = exp(k (p - shift)), k = -1 / lambda+,
                      and over the negatives, k = 1 / lambda-
    loss = tau / L log(1 + exp(L (pbar- - pbar+ + margin))), averaged over the scopes that have a candidate
    d loss / dx = coefficient exp(k (p - mean)) (1 + k (p - mean)) p (1 - p),   mean = pbar of its kind,
    coefficient = -+ share tau sigmoid(L (...)) / sum exp(k (p - mean))

Kernels work with c = p - 1/2 = +-(1/2 - sigmoid(-|x|)), which keeps the digits of 1 - p that p near 1 would lose and
that exp(k p) needs. Any shift gives the same pbar. The forward pass needs no running maximum for it: with shift = 1/2
exponents stay within |k| / 2, and even 2^33 terms of float32 far from overflow, the largest far from underflow, as long
as |k| <= 96; the default lambda- gives 12.5. For smaller lambdas each lane takes the c that weighs most so far, and
rescales its sums when that changes. Backward the shift is the mean: k (p - mean) is at most the entropy of the weights,
log N, and small where the weights are, so that their exponents are rounded least.

    symbol               meaning
    c, shift             of p, less 1/2
    rate                 k / ln 2: w = 2^(rate (c - shift)), one instruction
    partial [6, S, R]    shift, sum of w, sum of w c of the positives, then of the negatives, of every R-th block of s
    state [2, 3, S]      of positives and negatives, (coefficient, shift, mean) of scope s; shift = mean

    owner of outputs     _sums_kernel (r, s): partial[:, s, r];  dr_finish.py: loss and state;
                         _gradient_kernel (b, s): the gradient of block b of scope s
    accumulation         in a program in float32 (float64 for float64 logits), across programs in float64
    order of every sum   fixed by the shapes alone: results are bitwise the same on any device, in any run
    process group        dr_group.py adds up the partial sums of each rank, and dr_finish.py those of all
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
from .dr_finish import finish
from .dr_group import gather_sums, mean_over_images

# Not yet measured on a GPU. 8 logits a thread: two 16-byte loads of float32, one of half precision, in about 60
# registers; with 16 a thread needs 138, and only 3 programs fit on a multiprocessor.
BLOCK = 1024
MAX_PROGRAMS = 1024  # that read the logits: several for each multiprocessor of today's GPUs
LARGEST_CENTERED = 96.0


@triton.jit
def _probability(x):
    """(c = sigmoid(x) - 1/2, the derivative of sigmoid)."""
    e = exponential(-tl.abs(x))
    r = reciprocal(1 + e)
    q = e * r
    return tl.where(x < 0, q - 0.5, 0.5 - q), q * r


@triton.jit
def _add_shifted(shift, total, weighted, c, mask, rate):
    """Sums with the masked c added, relative to the c that weighs most."""
    lowest = tl.minimum(shift, tl.where(mask, c, 0.5))
    highest = tl.maximum(shift, tl.where(mask, c, -0.5))
    new_shift = tl.where(rate < 0, lowest, highest)
    w = tl.where(mask, tl.exp2(rate * (c - new_shift)), 0)
    kept = tl.exp2(rate * (shift - new_shift))
    return new_shift, total * kept + w, weighted * kept + tl.where(mask, w * c, 0)


@triton.jit
def _store_sums(partial_ptr, stride, shift, total, weighted, rate, SHIFTED: tl.constexpr):
    """The sums of a program's lanes, relative to the shift that weighs most."""
    if SHIFTED:
        new_shift = tl.max(rate * shift) / rate
        kept = tl.exp2(rate * (shift - new_shift))
        total, weighted = total * kept, weighted * kept
        tl.store(partial_ptr, new_shift)
    else:
        tl.store(partial_ptr, 0)
    tl.store(partial_ptr + stride, tl.sum(total))
    tl.store(partial_ptr + 2 * stride, tl.sum(weighted))


@triton.jit
def _sums_kernel(
    logits_ptr, targets_ptr, partial_ptr, num_candidates, positive_rate: tl.float64, negative_rate: tl.float64,
    BLOCK: tl.constexpr, SHIFTED: tl.constexpr, NUM_CLASSES: tl.constexpr, LABELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Sums of w and w c over every num_programs-th block of a scope."""
    program, scope = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_programs = tl.num_programs(0)
    positive_rate, negative_rate = number(positive_rate, COMPUTE), number(negative_rate, COMPUTE)
    # The shifts that weigh least, of c in [-1/2, 1/2]; without SHIFTED the shift is 0.
    positive_shift = tl.full([BLOCK], 0.5, COMPUTE)
    positive_total = tl.zeros([BLOCK], COMPUTE)
    positive_weighted = tl.zeros([BLOCK], COMPUTE)
    negative_shift = tl.full([BLOCK], -0.5, COMPUTE)
    negative_total = tl.zeros([BLOCK], COMPUTE)
    negative_weighted = tl.zeros([BLOCK], COMPUTE)
    for block in range(program, tl.cdiv(num_candidates, BLOCK), num_programs):
        _, _, x, negative, positive = load_candidates(
            logits_ptr, targets_ptr, scope, tl.cast(block, tl.int64) * BLOCK, num_candidates,
            BLOCK, NUM_CLASSES, LABELS, COMPUTE,
        )  # fmt: skip
        c, _ = _probability(x)
        if SHIFTED:
            positive_shift, positive_total, positive_weighted = _add_shifted(
                positive_shift, positive_total, positive_weighted, c, positive, positive_rate
            )
            negative_shift, negative_total, negative_weighted = _add_shifted(
                negative_shift, negative_total, negative_weighted, c, negative, negative_rate
            )
        else:
            w = tl.exp2(tl.where(positive, positive_rate, negative_rate) * c)
            positive_total += tl.where(positive, w, 0)
            positive_weighted += tl.where(positive, w * c, 0)
            negative_total += tl.where(negative, w, 0)
            negative_weighted += tl.where(negative, w * c, 0)
    stride = tl.num_programs(1).to(tl.int64) * num_programs
    own_ptr = partial_ptr + scope * num_programs + program
    _store_sums(own_ptr, stride, positive_shift, positive_total, positive_weighted, positive_rate, SHIFTED)
    _store_sums(own_ptr + 3 * stride, stride, negative_shift, negative_total, negative_weighted, negative_rate, SHIFTED)


@triton.jit
def _gradient_kernel(
    logits_ptr, targets_ptr, state_ptr, upstream_ptr, gradient_ptr, num_candidates,
    positive_k: tl.float64, negative_k: tl.float64,
    BLOCK: tl.constexpr, NUM_CLASSES: tl.constexpr, LABELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Gradient of a block of logits."""
    block, scope = tl.program_id(0), tl.program_id(1).to(tl.int64)
    num_scopes = tl.num_programs(1)
    positions, in_scope, x, negative, positive = load_candidates(
        logits_ptr, targets_ptr, scope, tl.cast(block, tl.int64) * BLOCK, num_candidates,
        BLOCK, NUM_CLASSES, LABELS, COMPUTE,
    )  # fmt: skip
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
    logits: Tensor, targets: Tensor, margin: float, pos_lambda: float, neg_lambda: float, L: float, tau: float,
    per_image: bool, group: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, state)."""
    shifted = max(1 / pos_lambda, 1 / neg_lambda) > LARGEST_CENTERED
    rates = -1 / (pos_lambda * math.log(2)), 1 / (neg_lambda * math.log(2))
    partial = _sums(logits, targets, rates, shifted, per_image)
    if group is not None and not per_image:
        partial = gather_sums(partial, (-1 / pos_lambda, 1 / neg_lambda), group)
    loss, state = finish(partial, rates, margin, L, tau, shifted, result_dtype(logits))
    if group is None:
        return loss, state
    if per_image:
        return mean_over_images(loss, state, partial, group)
    state[:, 0] *= world_size(group)
    return loss, state


def _sums(logits: Tensor, targets: Tensor, rates: tuple[float, float], shifted: bool, per_image: bool) -> Tensor:
    """Partial sums [2, 3, S, R]; R = 0 without logits."""
    dtype = result_dtype(logits)
    if logits.numel() == 0:
        return logits.new_empty((2, 3, logits.shape[0] if per_image else 1, 0), dtype=dtype)
    scopes = scopes_of(logits, targets, per_image)
    num_programs = min(triton.cdiv(scopes.num_candidates, BLOCK), max(1, MAX_PROGRAMS // scopes.num_scopes))
    partial = logits.new_empty((2, 3, scopes.num_scopes, num_programs), dtype=dtype)
    _sums_kernel[num_programs, scopes.num_scopes](
        scopes.logits, scopes.targets, partial, scopes.num_candidates, *rates,
        BLOCK=BLOCK, SHIFTED=shifted, **scopes.arguments(),
    )  # fmt: skip
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
        scopes.logits, scopes.targets, state, upstream, gradient, scopes.num_candidates, -1 / pos_lambda,
        1 / neg_lambda, BLOCK=BLOCK, **scopes.arguments(),
    )  # fmt: skip
    return gradient

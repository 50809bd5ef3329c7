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
    background [S, B]    of every block, whether it holds negatives alone: blocks.py

    owner of outputs     dr_sums.py: partial and background;  dr_combine.py: loss and state
                         _gradient_kernel (t, s): the gradient of its blocks of scope s
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
from ...targets import background_flags
from ..arithmetic import number
from ..blocks import (
    BLOCKS_AT_ONCE,
    block_arguments,
    blocks_of,
    kinds_of_block,
    load_block,
    scope_arguments,
    store_block,
)
from ..candidates import scopes_of
from ..grid import cdiv
from .dr_combine import combine_sums
from .dr_group import gather_sums, mean_over_images
from .dr_sums import probability, sum_candidates

LN2 = tl.constexpr(math.log(2))
LARGEST_CENTERED = 96.0  # |k| up to which the forward pass keeps the shift at 1/2


@triton.jit
def _slopes(x, coefficient, mean, rate):
    """Gradients of logits of one kind; exp and its exponent in powers of 2, which is one instruction."""
    c, slope = probability(x)
    exponent = rate * c - rate * (mean - 0.5)
    return slope * tl.exp2(exponent) * (coefficient + coefficient * LN2 * exponent)


@triton.jit
def _gradient_kernel(
    logits_ptr,
    targets_ptr,
    background_ptr,
    state_ptr,
    upstream_ptr,
    gradient_ptr,
    num_candidates,
    num_targets,
    positive_rate: tl.float64,
    negative_rate: tl.float64,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    BLOCKS_AT_ONCE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of some blocks of logits."""
    scope, num_scopes = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    num_blocks = tl.cdiv(num_candidates, BLOCK)
    first = tl.multiple_of(scope * num_candidates, ALIGNMENT)
    logits_ptr += first
    gradient_ptr += first
    targets_ptr += scope * num_targets
    background_ptr += scope * num_blocks
    state_ptr += scope
    upstream = tl.load(upstream_ptr).to(COMPUTE)
    positive_coefficient, positive_mean = tl.load(state_ptr) * upstream, tl.load(state_ptr + 2 * num_scopes)
    negative_coefficient = tl.load(state_ptr + 3 * num_scopes) * upstream
    negative_mean = tl.load(state_ptr + 5 * num_scopes)
    positive_rate, negative_rate = number(positive_rate, COMPUTE), number(negative_rate, COMPUTE)
    first_block = tl.program_id(0) * BLOCKS_AT_ONCE
    for block in range(first_block, tl.minimum(first_block + BLOCKS_AT_ONCE, num_blocks)):
        start = tl.cast(block, INDEX) * BLOCK
        if tl.load(background_ptr + block) != 0:
            x = load_block(logits_ptr, start, num_candidates, BLOCK).to(COMPUTE)
            gradient = _slopes(x, negative_coefficient, negative_mean, negative_rate)
            store_block(gradient_ptr, start, num_candidates, gradient, BLOCK)
        else:
            for part in range(start, tl.minimum(start + BLOCK, num_candidates), PART):
                x = load_block(logits_ptr, part, num_candidates, PART).to(COMPUTE)
                negative, positive = kinds_of_block(targets_ptr, part, num_candidates, PART, NUM_CLASSES, LABELS)
                coefficients = tl.where(positive, positive_coefficient, negative_coefficient)
                means = tl.where(positive, positive_mean, negative_mean)
                rates = tl.where(positive, positive_rate, negative_rate)
                gradient = tl.where(positive | negative, _slopes(x, coefficients, means, rates), 0)
                store_block(gradient_ptr, part, num_candidates, gradient, PART)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, state [2, 3, S], background [S, B])."""
    shifted = max(1 / pos_lambda, 1 / neg_lambda) > LARGEST_CENTERED
    rates = -1 / (pos_lambda * math.log(2)), 1 / (neg_lambda * math.log(2))
    background = background_flags(logits, per_image)
    partial = sum_candidates(logits, targets, background, rates, shifted, per_image)
    if group is not None and not per_image:
        partial = gather_sums(partial, (-1 / pos_lambda, 1 / neg_lambda), group)
    loss, state = combine_sums(partial, rates, margin, L, tau, shifted, result_dtype(logits))
    if group is not None:
        if per_image:
            loss, state = mean_over_images(loss, state, partial, group)
        else:
            state[:, 0] *= world_size(group)
    return loss, state, background


def backward(
    logits: Tensor,
    targets: Tensor,
    state: Tensor,
    background: Tensor,
    upstream: Tensor,
    pos_lambda: float,
    neg_lambda: float,
) -> Tensor:
    """Gradient of the logits."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if logits.numel() == 0:
        return gradient
    scopes = scopes_of(logits, targets, per_image=state.shape[2] > 1)
    _gradient_kernel[cdiv(blocks_of(scopes), BLOCKS_AT_ONCE), scopes.num_scopes](
        scopes.logits,
        scopes.targets,
        background,
        state,
        upstream,
        gradient,
        positive_rate=-1 / (pos_lambda * math.log(2)),
        negative_rate=1 / (neg_lambda * math.log(2)),
        BLOCKS_AT_ONCE=BLOCKS_AT_ONCE,
        **scope_arguments(scopes),
        **block_arguments(scopes),
    )
    return gradient

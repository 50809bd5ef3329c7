"""IoU-balanced focal loss and binary cross-entropy on the GPU: one pass for the sums, one for the gradient.

    loss = (sum_j l_j + Z sum_i u_i^eta l_i) / avg_factor,   Z = sum_i l_i / (sum_i u_i^eta l_i + 1e-6)
    l = weight sigmoid(z)^gamma softplus(z),   z = -x for a positive, x for a negative;   BCE: gamma = 0, weights 1
The gradient of a negative is that of l_j times scale[0], of a positive that of l_i times u_i^eta scale[1].
focal.py has l without its weight and the derivative, balance.py has Z and scale, which holds the weights.

Positives are few: u^eta, two thirds of the work on a logit, is computed only in blocks that have one.

    symbol               meaning
    partial [4, R]       sum_j l_j, sum_i l_i, sum_i u_i^eta l_i without weights, and number of positives, of every
                         R-th block
    background [1, B]    of every block, whether it holds negatives alone: blocks.py
    iou, ends            u_i, and where it is: iou_of_positives.py

    owner of outputs     _sums_kernel r: partial[:, r], and background of its blocks
                         _gradient_kernel t: the gradient of its blocks
                         loss and scale: balance.py
    accumulation         in a program in float32 (float64 for float64 logits), across programs in float64
    order of every sum   fixed by the shapes alone: results are bitwise the same on any device, in any run
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ...targets import background_flags
from ..arithmetic import clamp_infinities, number
from ..blocks import (
    BLOCKS_AT_ONCE,
    block_arguments,
    blocks_of,
    count,
    is_background,
    kinds_of_block,
    load_block,
    programs_of,
    store_block,
    sum_fours,
)
from ..candidates import scopes_of
from ..grid import cdiv
from .balance import balance
from .focal import focal, focal_slope, power_of
from .iou_of_positives import count_positives, load_weights, logits_per_iou, positives_before


@triton.jit
def _load_part(
    logits_ptr,
    targets_ptr,
    start,
    num_candidates,
    PART: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """A part of a block: (z, negative, positive)."""
    x = clamp_infinities(load_block(logits_ptr, start, num_candidates, PART), COMPUTE)
    negative, positive = kinds_of_block(targets_ptr, start, num_candidates, PART, NUM_CLASSES, LABELS)
    return tl.where(positive, -x, x), negative, positive


@triton.jit
def _sums_kernel(
    logits_ptr,
    targets_ptr,
    iou_ptr,
    ends_ptr,
    background_ptr,
    partial_ptr,
    num_candidates,
    num_iou,
    eta: tl.float64,
    gamma: tl.float64,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    POWER: tl.constexpr,
    LOGITS_PER_IOU: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums over every num_programs-th block."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    num_blocks = tl.cdiv(num_candidates, BLOCK)
    eta, gamma = number(eta, COMPUTE), number(gamma, COMPUTE)
    sum_background = tl.zeros([BLOCK // 4], COMPUTE)
    sum_negatives = tl.zeros([PART], COMPUTE)
    sum_positives = tl.full([], 0, COMPUTE)
    sum_weighted = tl.full([], 0, COMPUTE)
    num_positives = tl.full([], 0, tl.int64)
    if LOGITS_PER_IOU == 0:  # with more or fewer IoU than positives no loss is right: NaN says so without the host
        sum_weighted += tl.where(tl.load(ends_ptr + num_blocks - 1) == num_iou, 0, float("nan"))
    for block in range(program, num_blocks, num_programs):
        start = tl.cast(block, INDEX) * BLOCK
        x = clamp_infinities(load_block(logits_ptr, start, num_candidates, BLOCK), COMPUTE)
        background = is_background(targets_ptr, start, num_candidates, BLOCK, NUM_CLASSES, LABELS)
        tl.store(background_ptr + block, background)
        if background:
            sum_background += sum_fours(focal(x, gamma, POWER))
        else:
            num_before = positives_before(ends_ptr, block, LOGITS_PER_IOU)
            for part in range(start, tl.minimum(start + BLOCK, num_candidates), PART):
                z, negative, positive = _load_part(
                    logits_ptr, targets_ptr, part, num_candidates, PART, NUM_CLASSES, LABELS, COMPUTE
                )
                weights = load_weights(iou_ptr, num_iou, part, positive, num_before, eta, LOGITS_PER_IOU, COMPUTE)
                terms = focal(z, gamma, POWER)
                sum_negatives += tl.where(negative, terms, 0)
                sum_positives += tl.sum(tl.where(positive, terms, 0))
                sum_weighted += tl.sum(tl.where(positive, terms * weights, 0))
                num_in_part = count(positive, COMPUTE)
                num_positives += num_in_part
                num_before += num_in_part
    own_ptr = partial_ptr + program
    tl.store(own_ptr, tl.sum(sum_background) + tl.sum(sum_negatives))
    tl.store(own_ptr + num_programs, sum_positives)
    tl.store(own_ptr + 2 * num_programs, sum_weighted)
    tl.store(own_ptr + 3 * num_programs, num_positives)


@triton.jit
def _gradient_kernel(
    logits_ptr,
    targets_ptr,
    iou_ptr,
    ends_ptr,
    background_ptr,
    scale_ptr,
    upstream_ptr,
    gradient_ptr,
    num_candidates,
    num_iou,
    eta: tl.float64,
    gamma: tl.float64,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    BLOCKS_AT_ONCE: tl.constexpr,
    POWER: tl.constexpr,
    LOGITS_PER_IOU: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of some blocks of logits."""
    num_blocks = tl.cdiv(num_candidates, BLOCK)
    eta, gamma = number(eta, COMPUTE), number(gamma, COMPUTE)
    upstream = tl.load(upstream_ptr).to(tl.float64)
    of_negatives = (tl.load(scale_ptr) * upstream).to(COMPUTE)
    first_block = tl.program_id(0) * BLOCKS_AT_ONCE
    for block in range(first_block, tl.minimum(first_block + BLOCKS_AT_ONCE, num_blocks)):
        start = tl.cast(block, INDEX) * BLOCK
        if tl.load(background_ptr + block) != 0:
            x = clamp_infinities(tl.load(logits_ptr + start + tl.arange(0, BLOCK)), COMPUTE)
            gradient = of_negatives * focal_slope(x, gamma, POWER)
            store_block(gradient_ptr, start, num_candidates, gradient, BLOCK)
        else:
            num_before = positives_before(ends_ptr, block, LOGITS_PER_IOU)
            for part in range(start, tl.minimum(start + BLOCK, num_candidates), PART):
                z, negative, positive = _load_part(
                    logits_ptr, targets_ptr, part, num_candidates, PART, NUM_CLASSES, LABELS, COMPUTE
                )
                weights = load_weights(iou_ptr, num_iou, part, positive, num_before, eta, LOGITS_PER_IOU, COMPUTE)
                of_positives = (weights.to(tl.float64) * (tl.load(scale_ptr + 1) * upstream)).to(COMPUTE)
                factors = tl.where(positive, -of_positives, of_negatives)
                gradient = tl.where(negative | positive, factors * focal_slope(z, gamma, POWER), 0)
                store_block(gradient_ptr, part, num_candidates, gradient, PART)
                num_before += count(positive, COMPUTE)


def focal_forward(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor,
    eta: float,
    negative_weight: float,
    positive_weight: float,
    gamma: float,
    avg_number: float | None,
    avg_tensor: Tensor | None,
    group: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, scale [2], background, ends); `iou` per anchor, of the shape of the logits, or [P]; only then has ends."""
    scopes = scopes_of(logits, targets, per_image=False)
    partial = torch.empty(4, programs_of(scopes), dtype=result_dtype(logits), device=logits.device)
    background = background_flags(logits)
    ends = torch.empty(0, dtype=torch.long, device=logits.device)
    if logits.numel() > 0:
        if logits_per_iou(logits, iou) == 0:
            ends = count_positives(scopes)
        _sums_kernel[partial.shape[1],](
            scopes.logits,
            scopes.targets,
            iou.contiguous(),
            ends,
            background,
            partial,
            num_iou=iou.numel(),
            eta=eta,
            gamma=gamma,
            POWER=power_of(gamma),
            LOGITS_PER_IOU=logits_per_iou(logits, iou),
            **block_arguments(scopes),
        )
    weights = (negative_weight, positive_weight)
    return *balance(partial, weights, avg_number, avg_tensor, group), background, ends


def focal_backward(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor,
    scale: Tensor,
    background: Tensor,
    ends: Tensor,
    upstream: Tensor,
    eta: float,
    gamma: float,
) -> Tensor:
    """Gradient of the logits."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if logits.numel() > 0:
        scopes = scopes_of(logits, targets, per_image=False)
        _gradient_kernel[cdiv(blocks_of(scopes), BLOCKS_AT_ONCE),](
            scopes.logits,
            scopes.targets,
            iou.contiguous(),
            ends,
            background,
            scale,
            upstream,
            gradient,
            num_iou=iou.numel(),
            eta=eta,
            gamma=gamma,
            POWER=power_of(gamma),
            BLOCKS_AT_ONCE=BLOCKS_AT_ONCE,
            LOGITS_PER_IOU=logits_per_iou(logits, iou),
            **block_arguments(scopes),
        )
    return gradient

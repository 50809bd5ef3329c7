"""IoU-balanced focal loss and binary cross-entropy on the GPU: one pass for the sums, one for the gradient.

    loss = (sum_j l_j + Z sum_i u_i^eta l_i) / avg_factor,   Z = sum_i l_i / (sum_i u_i^eta l_i + 1e-6)
    l = weight sigmoid(-s)^gamma softplus(-s),   s = x for a positive, -x for a negative;   BCE: gamma = 0, weights 1
The gradient of a negative is that of l_j times scale[0], of a positive that of l_i times u_i^eta scale[1].
focal.py has l without its weight and the derivative, balance.py has Z and scale, which holds the weights.

Positives are few: u^eta, two thirds of the work on a logit, is computed only in blocks that have one.

    symbol               meaning
    partial [4, R]       sum_j l_j, sum_i l_i, sum_i u_i^eta l_i without weights, and number of positives, of every
                         R-th block
    iou                  per anchor or per logit: u_i is iou[position // LOGITS_PER_IOU]

    owner of outputs     _sums_kernel r: partial[:, r];  _gradient_kernel b: the gradient of block b
                         loss and scale: balance.py
    accumulation         in a program in float32 (float64 for float64 logits), across programs in float64
    order of every sum   fixed by the shapes alone: results are bitwise the same on any device, in any run
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ..arithmetic import clamp_infinities, number
from ..candidates import load_targets, scopes_of
from .balance import MAX_PROGRAMS, balance, iou_weights
from .focal import focal, focal_slope, power_of

# Not yet measured on a GPU. 8 logits a thread: two 16-byte loads of float32, one of half precision.
BLOCK = 1024


@triton.jit
def _load_logits(
    logits_ptr,
    targets_ptr,
    start,
    num_logits,
    BLOCK: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Logits start:start + BLOCK: (positions, in range, s, negative, positive)."""
    positions, in_range, negative, positive = load_targets(
        targets_ptr, 0, start, num_logits, BLOCK, NUM_CLASSES, LABELS
    )
    x = clamp_infinities(tl.load(logits_ptr + positions, mask=in_range, other=0), COMPUTE)
    return positions, in_range, tl.where(positive, x, -x), negative, positive


@triton.jit
def _load_weights(iou_ptr, positions, positive, eta, LOGITS_PER_IOU: tl.constexpr, COMPUTE: tl.constexpr):
    """u^eta of the positives."""
    iou = tl.load(iou_ptr + positions // LOGITS_PER_IOU, mask=positive, other=0).to(COMPUTE)
    return iou_weights(iou, eta)


@triton.jit
def _sums_kernel(
    logits_ptr,
    targets_ptr,
    iou_ptr,
    partial_ptr,
    num_logits,
    eta: tl.float64,
    gamma: tl.float64,
    BLOCK: tl.constexpr,
    POWER: tl.constexpr,
    LOGITS_PER_IOU: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums over every num_programs-th block."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    eta, gamma = number(eta, COMPUTE), number(gamma, COMPUTE)
    sum_negatives = tl.zeros([BLOCK], COMPUTE)
    sum_positives = tl.full([], 0, COMPUTE)
    sum_weighted = tl.full([], 0, COMPUTE)
    num_positives = tl.full([], 0, tl.int32)
    for block in range(program, tl.cdiv(num_logits, BLOCK), num_programs):
        start = tl.cast(block, tl.int64) * BLOCK
        positions, _, s, negative, positive = _load_logits(
            logits_ptr, targets_ptr, start, num_logits, BLOCK, NUM_CLASSES, LABELS, COMPUTE
        )
        terms = focal(s, gamma, POWER)
        sum_negatives += tl.where(negative, terms, 0)
        num_in_block = tl.sum(positive.to(tl.int32))
        if num_in_block > 0:
            weights = _load_weights(iou_ptr, positions, positive, eta, LOGITS_PER_IOU, COMPUTE)
            sum_positives += tl.sum(tl.where(positive, terms, 0))
            sum_weighted += tl.sum(tl.where(positive, terms * weights, 0))
            num_positives += num_in_block
    own_ptr = partial_ptr + program
    tl.store(own_ptr, tl.sum(sum_negatives))
    tl.store(own_ptr + num_programs, sum_positives)
    tl.store(own_ptr + 2 * num_programs, sum_weighted)
    tl.store(own_ptr + 3 * num_programs, num_positives)


@triton.jit
def _gradient_kernel(
    logits_ptr,
    targets_ptr,
    iou_ptr,
    scale_ptr,
    upstream_ptr,
    gradient_ptr,
    num_logits,
    eta: tl.float64,
    gamma: tl.float64,
    BLOCK: tl.constexpr,
    POWER: tl.constexpr,
    LOGITS_PER_IOU: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of a block of logits."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    eta, gamma = number(eta, COMPUTE), number(gamma, COMPUTE)
    positions, in_range, s, negative, positive = _load_logits(
        logits_ptr, targets_ptr, start, num_logits, BLOCK, NUM_CLASSES, LABELS, COMPUTE
    )
    upstream = tl.load(upstream_ptr).to(tl.float64)
    factors = tl.where(negative, (-tl.load(scale_ptr) * upstream).to(COMPUTE), 0)
    if tl.max(positive.to(tl.int32)) > 0:
        weights = _load_weights(iou_ptr, positions, positive, eta, LOGITS_PER_IOU, COMPUTE)
        of_positives = weights.to(tl.float64) * (tl.load(scale_ptr + 1) * upstream)
        factors = tl.where(positive, of_positives.to(COMPUTE), factors)
    gradient = tl.where(negative | positive, factors * focal_slope(s, gamma, POWER), 0)
    tl.store(gradient_ptr + positions, gradient.to(gradient_ptr.dtype.element_ty), mask=in_range)


def _logits_per_iou(logits: Tensor, iou: Tensor) -> int:
    return 1 if iou.shape == logits.shape else logits.shape[-1]


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
) -> tuple[Tensor, Tensor]:
    """(loss, scale [2]); `iou` per anchor, or of the shape of the logits."""
    num_programs = min(triton.cdiv(logits.numel(), BLOCK), MAX_PROGRAMS)
    partial = torch.empty(4, num_programs, dtype=result_dtype(logits), device=logits.device)
    if num_programs > 0:
        scopes = scopes_of(logits, targets, per_image=False)
        _sums_kernel[num_programs,](
            scopes.logits,
            scopes.targets,
            iou.contiguous(),
            partial,
            num_logits=logits.numel(),
            eta=eta,
            gamma=gamma,
            BLOCK=BLOCK,
            POWER=power_of(gamma),
            LOGITS_PER_IOU=_logits_per_iou(logits, iou),
            **scopes.arguments(),
        )
    weights = (negative_weight, positive_weight)
    return balance(partial, weights, avg_number, avg_tensor, group)


def focal_backward(
    logits: Tensor, targets: Tensor, iou: Tensor, scale: Tensor, upstream: Tensor, eta: float, gamma: float
) -> Tensor:
    """Gradient of the logits."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if logits.numel() > 0:
        scopes = scopes_of(logits, targets, per_image=False)
        _gradient_kernel[triton.cdiv(logits.numel(), BLOCK),](
            scopes.logits,
            scopes.targets,
            iou.contiguous(),
            scale,
            upstream,
            gradient,
            num_logits=logits.numel(),
            eta=eta,
            gamma=gamma,
            BLOCK=BLOCK,
            POWER=power_of(gamma),
            LOGITS_PER_IOU=_logits_per_iou(logits, iou),
            **scopes.arguments(),
        )
    return gradient

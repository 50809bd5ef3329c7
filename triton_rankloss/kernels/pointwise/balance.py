"""What the IoU-balanced losses share: the weights of IoU, and the way from sums over candidates to the loss.

    Z = P / (W + 1e-6),   loss = (N + Z W) / avg_factor,   scale = (weight_0 / avg_factor, weight_1 Z / avg_factor)
with the sums of terms N over negatives, P over positives, W over positives times u^eta, times the class weights.
Z has no room in float32 where a positive without weight has an infinite logit: scale is float64, and so is its product
with a weight. With a process group the sums are over all its ranks, and `scale` is multiplied by their number.

    symbol               meaning
    partial [4, R]       the sums N, P, W, and the number that avg_factor is without an argument, of every program

    owner of outputs     _balance_kernel, one program
    accumulation         float64, in a fixed order
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import distributed
from ..arithmetic import number

SUMS_AT_ONCE = 4096  # of programs, 16 a thread: what adds them up seldom waits for memory
SUM_WARPS = 8  # 16 spill with Triton 3.2
EPS = tl.constexpr(1e-6)


@triton.jit
def iou_weights(iou, eta):
    """u^eta; an IoU that rounding left below 0 counts as 0."""
    iou = tl.maximum(iou, 0, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(eta == 0, 1, tl.exp2(eta * tl.log2(iou)))


@triton.jit
def sum_programs(partial_ptr, quantity, num_programs, BLOCK: tl.constexpr):
    """One of the sums, over all programs."""
    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, num_programs, BLOCK):
        program = start + tl.arange(0, BLOCK)
        at = partial_ptr + quantity * num_programs + program
        sums += tl.load(at, mask=program < num_programs, other=0).to(tl.float64)
    return tl.sum(sums)


@triton.jit
def load_divisor(avg_ptr, avg_number, default, HAS_NUMBER: tl.constexpr):
    """avg_factor: the tensor or the number that was given, or without both `default`, at least 1."""
    if avg_ptr is not None:
        return tl.load(avg_ptr).to(tl.float64)
    if HAS_NUMBER:
        return number(avg_number, tl.float64)
    return tl.maximum(default, 1).to(tl.float64)


@triton.jit
def _balance_kernel(
    partial_ptr,
    avg_ptr,
    loss_ptr,
    scale_ptr,
    num_programs,
    negative_weight: tl.float64,
    positive_weight: tl.float64,
    avg_number: tl.float64,
    HAS_NUMBER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss and scale."""
    sum_negatives = negative_weight * sum_programs(partial_ptr, 0, num_programs, BLOCK)
    sum_positives = positive_weight * sum_programs(partial_ptr, 1, num_programs, BLOCK)
    sum_weighted = positive_weight * sum_programs(partial_ptr, 2, num_programs, BLOCK)
    divisor = load_divisor(avg_ptr, avg_number, sum_programs(partial_ptr, 3, num_programs, BLOCK), HAS_NUMBER)
    z = sum_positives / (sum_weighted + EPS)
    tl.store(loss_ptr, (sum_negatives + z * sum_weighted) / divisor)
    tl.store(scale_ptr, negative_weight / divisor)
    tl.store(scale_ptr + 1, positive_weight * z / divisor)


def balance(
    partial: Tensor,
    weights: tuple[float, float],
    avg_number: float | None,
    avg_tensor: Tensor | None,
    group: str | None,
) -> tuple[Tensor, Tensor]:
    """(loss, scale [2]) from partial [4, R]; class `weights` of (negatives, positives)."""
    loss, scale = partial.new_empty(()), partial.new_empty(2, dtype=torch.float64)
    if group is not None:
        partial = distributed.total(partial.sum(1, keepdim=True, dtype=torch.float64), group)
    negative_weight, positive_weight = weights
    _balance_kernel[1,](
        partial,
        avg_tensor,
        loss,
        scale,
        num_programs=partial.shape[1],
        negative_weight=negative_weight,
        positive_weight=positive_weight,
        avg_number=avg_number or 0.0,
        HAS_NUMBER=avg_number is not None,
        BLOCK=SUMS_AT_ONCE,
        num_warps=SUM_WARPS,
    )
    if group is not None:
        scale *= distributed.world_size(group)
    return loss, scale

"""Box losses of pairs of boxes, forward and backward: one kernel each, one read of the boxes, one write.

    kind        loss
    overlap     IoU
    iou         1 - IoU
    harmonic    (1 + IoU)^gamma (1 - IoU)
    giou        1 - IoU + (C - U) / C~
    diou        1 - IoU + d / D~
    ciou        1 - IoU + d / D~ + alpha v,   v = (2 (theta_b - theta_a) / pi)^2,   alpha = v / (1 - IoU + v + eps)
With, of boxes a and b,
    o   lengths of the overlap, 0 on both axes if the boxes do not intersect        I = o_x o_y
    s   width and height of a, not below 0; those of b are needed for areas alone   U = |a| + |b| - I
    e   lengths of the smallest box around all corners                              C = e_x e_y, D = e_x^2 + e_y^2
    m   difference of the centres                                                   d = m_x^2 + m_y^2
and ' for the length on the other axis, U~ = U + eps, C~ = C + eps, D~ = D + eps, IoU = I / U~, the derivatives of the
losses are (alpha is constant)
                  in o                      in s                        in e                 in m
    1 - IoU       -(1 + IoU) o' / U~        IoU s' / U~
    overlap       -1 times these
    harmonic      k times these,  k = (1 + IoU)^gamma (1 - gamma (1 - IoU) / (1 + IoU))
    giou adds     o' / C~                   -s' / C~                    U~ e' / C~^2
    diou adds                                                           -2 d e / D~^2        2 m / D~
    ciou adds                               -(8 alpha / pi^2) (theta_b - theta_a) (s_y, -s_x) / (s_x^2 + s_y^2)
A length l = l2 - l1 hands its derivative on to whichever box ends it: with [x < y] = 1/2 for x = y,
    o: a2 [a2 < b2], -a1 [b1 < a1]     s: (a2 - a1) [a1 <= a2]     e: a2 [b2 < a2], -a1 [a1 < b1]     m: (a1 + a2) / 2.
In e corners are taken in order: where a2 < a1, they change their places, and so for b.

    symbol               meaning
    boxes1, boxes2       a, b: contiguous [num, 4], in any floating dtypes; a1, a2 and b1, b2: box_geometry.py
    upstream             of box i at i * upstream_stride: stride 0 where all boxes have the same, as in a sum

    owner of outputs     program t: boxes t * BLOCK and the following
    accumulation         float32 (float64 where a or b is float64); nothing is summed over boxes
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ..arithmetic import number
from ..candidates import TRITON_DTYPE
from .box_geometry import (
    area_of,
    aspect_difference,
    in_order,
    iou_and_union,
    less_or_half,
    load_corners,
    overlap_of,
    size_of,
    store_corners,
    swap_axes,
)
from .rows import upstream_and_stride

# Two boxes a thread in 4 warps; their coordinates are one 16-byte load each in float32. Not yet measured on a GPU.
BOXES_BLOCK = 256
FOUR_OVER_PI = tl.constexpr(4 / math.pi)


@triton.jit
def _harmonic_weight(iou, gamma):
    """(1 + IoU)^gamma."""
    return tl.exp2(tl.log2(1 + iou) * gamma)


@triton.jit
def box_losses(a1, a2, b1, b2, gamma, eps, KIND: tl.constexpr):
    """Losses [BLOCK]."""
    iou, union = iou_and_union(a1, a2, b1, b2, eps)
    loss = iou if KIND == "overlap" else 1 - iou
    low_a, high_a = in_order(a1, a2)
    low_b, high_b = in_order(b1, b2)
    around = tl.maximum(high_a, high_b) - tl.minimum(low_a, low_b)
    if KIND == "harmonic":
        loss *= _harmonic_weight(iou, gamma)
    if KIND == "giou":
        area = area_of(around)
        loss += (area - (union - eps)) / (area + eps)
    if KIND == "diou" or KIND == "ciou":
        offset = ((a1 - b1) + (a2 - b2)) * 0.5
        loss += tl.sum(offset * offset, 1) / (tl.sum(around * around, 1) + eps)
    if KIND == "ciou":
        difference = aspect_difference(a1, a2, b1, b2)
        v = difference * difference
        loss += v / (1 - iou + v + eps) * v
    return loss


@triton.jit
def box_gradients(a1, a2, b1, b2, gamma, eps, KIND: tl.constexpr):
    """Gradients of the losses in the corners of a: (lower [BLOCK, 2], upper [BLOCK, 2])."""
    iou, union = iou_and_union(a1, a2, b1, b2, eps)
    size = size_of(a1, a2)
    low_a, high_a = in_order(a1, a2)
    low_b, high_b = in_order(b1, b2)
    around = tl.maximum(high_a, high_b) - tl.minimum(low_a, low_b)
    per_union = 1 / union
    if KIND == "overlap":
        per_union = -per_union
    if KIND == "harmonic":
        per_union *= _harmonic_weight(iou, gamma) * (1 - (1 - iou) * gamma / (1 + iou))
    grad_intersection, grad_area = -(1 + iou) * per_union, iou * per_union
    grad_around, grad_center = tl.zeros_like(size), tl.zeros_like(size)
    if KIND == "giou":
        area = area_of(around) + eps
        grad_intersection += 1 / area
        grad_area -= 1 / area
        grad_around = (union / area / area)[:, None] * swap_axes(around)
    # A NaN in U makes both factors NaN, and NaN times a length of 0 is NaN: it reaches every coordinate.
    grad_overlap = grad_intersection[:, None] * swap_axes(overlap_of(a1, a2, b1, b2))
    grad_size = grad_area[:, None] * swap_axes(size)
    if KIND == "diou" or KIND == "ciou":
        offset = ((a1 - b1) + (a2 - b2)) * 0.5
        diagonal = tl.sum(around * around, 1) + eps
        ratio = tl.sum(offset * offset, 1) / diagonal
        grad_around = (-2 * ratio / diagonal)[:, None] * around
        grad_center = offset / diagonal[:, None]
    if KIND == "ciou":
        difference = aspect_difference(a1, a2, b1, b2)
        v = difference * difference
        width, height = tl.split(size)
        square = width * width + height * height
        turn = -v / (1 - iou + v + eps) * difference * FOUR_OVER_PI / tl.where(square == 0, 1.0, square)
        grad_size += tl.join(turn * height, -turn * width)
    grad_size *= tl.where(a1 <= a2, 1.0, 0.0)
    grad_low, grad_high = -grad_around * less_or_half(low_a, low_b), grad_around * less_or_half(high_b, high_a)
    lower = grad_center - grad_overlap * less_or_half(b1, a1) - grad_size + tl.where(a2 < a1, grad_high, grad_low)
    upper = grad_center + grad_overlap * less_or_half(a2, b2) + grad_size + tl.where(a2 < a1, grad_low, grad_high)
    return lower, upper


@triton.jit
def _box_loss_kernel(
    boxes1_ptr,
    boxes2_ptr,
    losses_ptr,
    num_boxes,
    gamma: tl.float64,
    eps: tl.float64,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Losses of a block of boxes."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    a1, a2 = load_corners(boxes1_ptr, first, num_boxes, BLOCK, COMPUTE)
    b1, b2 = load_corners(boxes2_ptr, first, num_boxes, BLOCK, COMPUTE)
    i = first + tl.arange(0, BLOCK)
    losses = box_losses(a1, a2, b1, b2, number(gamma, COMPUTE), number(eps, COMPUTE), KIND)
    tl.store(losses_ptr + i, losses, mask=i < num_boxes)


@triton.jit
def _box_loss_backward_kernel(
    boxes1_ptr,
    boxes2_ptr,
    upstream_ptr,
    gradient_ptr,
    upstream_stride,
    num_boxes,
    gamma: tl.float64,
    eps: tl.float64,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of a block of boxes1."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    a1, a2 = load_corners(boxes1_ptr, first, num_boxes, BLOCK, COMPUTE)
    b1, b2 = load_corners(boxes2_ptr, first, num_boxes, BLOCK, COMPUTE)
    i = first + tl.arange(0, BLOCK)
    upstream = tl.load(upstream_ptr + i * upstream_stride, mask=i < num_boxes, other=0).to(COMPUTE)[:, None]
    lower, upper = box_gradients(a1, a2, b1, b2, number(gamma, COMPUTE), number(eps, COMPUTE), KIND)
    store_corners(gradient_ptr, first, num_boxes, upstream * lower, upstream * upper, BLOCK)


def box_loss(boxes1: Tensor, boxes2: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Losses [...] of boxes [..., 4] in pairs."""
    dtype = result_dtype(boxes1, boxes2)
    losses = torch.empty(boxes1.shape[:-1], dtype=dtype, device=boxes1.device)
    if losses.numel() > 0:
        _box_loss_kernel[triton.cdiv(losses.numel(), BOXES_BLOCK),](
            boxes1.contiguous(),
            boxes2.contiguous(),
            losses,
            num_boxes=losses.numel(),
            gamma=gamma,
            eps=eps,
            BLOCK=BOXES_BLOCK,
            KIND=kind,
            COMPUTE=TRITON_DTYPE[dtype],
        )
    return losses


def box_loss_backward(boxes1: Tensor, boxes2: Tensor, upstream: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Gradient of `boxes1`, in its dtype."""
    gradient = torch.empty_like(boxes1, memory_format=torch.contiguous_format)
    if gradient.numel() > 0:
        upstream, stride = upstream_and_stride(upstream)
        _box_loss_backward_kernel[triton.cdiv(upstream.numel(), BOXES_BLOCK),](
            boxes1.contiguous(),
            boxes2.contiguous(),
            upstream,
            gradient,
            upstream_stride=stride,
            num_boxes=upstream.numel(),
            gamma=gamma,
            eps=eps,
            BLOCK=BOXES_BLOCK,
            KIND=kind,
            COMPUTE=TRITON_DTYPE[result_dtype(boxes1, boxes2)],
        )
    return gradient

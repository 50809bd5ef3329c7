"""Box losses of pairs of boxes, forward and backward: one kernel each, one read of the boxes, one write.

The losses are those of reference.boxes. Corners are tiles [BLOCK, 2] of (x, y), so both axes are written as one. With
    o   lengths of the overlap, 0 on both axes if the boxes do not intersect        I = o_x o_y
    s   width and height of a, not below 0; those of b are needed for areas alone   U = |a| + |b| - I
    e   lengths of the smallest box around both                                     C = e_x e_y, D = e_x^2 + e_y^2
    m   difference of the centres                                                   d = m_x^2 + m_y^2
and ' for the length on the other axis, U~ = U + eps, C~ = C + eps, D~ = D + eps, the slopes of the losses are
                  in o                      in s                        in e                 in m
    1 - IoU       -(1 + IoU) o' / U~        IoU s' / U~
    harmonic      k times these,  k = (1 + IoU)^gamma (1 - gamma (1 - IoU) / (1 + IoU))
    giou adds     o' / C~                   -s' / C~                    U~ e' / C~^2
    diou adds                                                           -2 d e / D~^2        2 m / D~
    ciou adds                               -(4 alpha / pi) (theta_b - theta_a) (s_y, -s_x) / (s_x^2 + s_y^2)
and a length l = l2 - l1 hands its slope on to whichever box ends it: with [x < y] = 1/2 for x = y,
    o: a2 [a2 < b2], -a1 [b1 < a1]     s: (a2 - a1) [a1 <= a2]     e: a2 [b2 < a2], -a1 [a1 < b1]     m: (a1 + a2) / 2.

theta_b - theta_a is taken as one angle, of (cross product, dot product) of the two (height, width): one arctangent, of
numbers that are not below 0.

    symbol               meaning
    boxes1, boxes2       a, b: contiguous [num, 4], in any floating dtypes
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
from .angle import angle
from .rows import load_rows, store_rows, upstream_and_stride

# Two boxes a thread in 4 warps; their coordinates are one 16-byte load each in float32. Not yet measured on a GPU.
BOXES_BLOCK = 256
FOUR_OVER_PI = tl.constexpr(4 / math.pi)


@triton.jit
def load_corners(boxes_ptr, first, num_boxes, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """Lower and upper corners [BLOCK, 2] of boxes first:first + BLOCK."""
    boxes = load_rows(boxes_ptr, first, num_boxes, BLOCK, 4, COMPUTE)
    lower, upper = tl.split(tl.permute(tl.reshape(boxes, [BLOCK, 2, 2]), [0, 2, 1]))
    return lower, upper


@triton.jit
def store_corners(boxes_ptr, first, num_boxes, lower, upper, BLOCK: tl.constexpr):
    """The opposite of load_corners."""
    boxes = tl.reshape(tl.permute(tl.join(lower, upper), [0, 2, 1]), [BLOCK, 4])
    store_rows(boxes_ptr, first, num_boxes, boxes, BLOCK, 4)


@triton.jit
def _product(size):
    width, height = tl.split(size)
    return width * height


@triton.jit
def _swap(size):
    """(Height, width)."""
    width, height = tl.split(size)
    return tl.join(height, width)


@triton.jit
def _size(lower, upper):
    """Width and height, not below 0; a NaN stays one, which is how a NaN reaches U and with it every result."""
    return tl.maximum(upper - lower, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _less(x, y):
    """[x < y], 1/2 where they are equal."""
    return tl.where(x < y, 1.0, tl.where(x == y, 0.5, 0.0))


@triton.jit
def _overlap(a1, a2, b1, b2):
    """Lengths o."""
    overlap = tl.minimum(a2, b2) - tl.maximum(a1, b1)
    width, height = tl.split(overlap)
    return tl.where(((width > 0) & (height > 0))[:, None], overlap, 0.0)


@triton.jit
def iou_and_union(a1, a2, b1, b2, eps):
    """(IoU, U + eps)."""
    intersection = _product(_overlap(a1, a2, b1, b2))
    union = _product(_size(a1, a2)) + _product(_size(b1, b2)) - intersection + eps
    return intersection / union, union


@triton.jit
def harmonic_weight(iou, gamma):
    """(1 + IoU)^gamma."""
    return tl.exp2(tl.log2(1 + iou) * gamma)


@triton.jit
def _aspect_difference(a1, a2, b1, b2):
    """2 (theta_b - theta_a) / pi; a point has the angle 0."""
    width_a, height_a = tl.split(_size(a1, a2))
    width_b, height_b = tl.split(_size(b1, b2))
    height_a = tl.where((width_a == 0) & (height_a == 0), 1.0, height_a)
    height_b = tl.where((width_b == 0) & (height_b == 0), 1.0, height_b)
    cross = width_b * height_a - width_a * height_b
    turn = angle(tl.abs(cross), height_a * height_b + width_a * width_b)
    return tl.where(cross < 0, -turn, turn)


@triton.jit
def box_losses(a1, a2, b1, b2, gamma, eps, KIND: tl.constexpr):
    """Losses [BLOCK]."""
    iou, union = iou_and_union(a1, a2, b1, b2, eps)
    loss = 1 - iou
    around = tl.maximum(tl.maximum(a2, b2) - tl.minimum(a1, b1), 0.0)
    if KIND == "harmonic":
        loss *= harmonic_weight(iou, gamma)
    if KIND == "giou":
        area = _product(around)
        loss += (area - (union - eps)) / (area + eps)
    if KIND == "diou" or KIND == "ciou":
        offset = ((a1 - b1) + (a2 - b2)) * 0.5
        loss += tl.sum(offset * offset, 1) / (tl.sum(around * around, 1) + eps)
    if KIND == "ciou":
        difference = _aspect_difference(a1, a2, b1, b2)
        v = difference * difference
        loss += v / (1 - iou + v + eps) * v
    return loss


@triton.jit
def box_gradients(a1, a2, b1, b2, gamma, eps, KIND: tl.constexpr):
    """Gradients of the losses in the corners of a: (lower [BLOCK, 2], upper [BLOCK, 2])."""
    iou, union = iou_and_union(a1, a2, b1, b2, eps)
    size = _size(a1, a2)
    reach = tl.maximum(a2, b2) - tl.minimum(a1, b1)
    around = tl.maximum(reach, 0.0)
    per_union = 1 / union
    if KIND == "harmonic":
        per_union *= harmonic_weight(iou, gamma) * (1 - (1 - iou) * gamma / (1 + iou))
    in_overlap, in_size = -(1 + iou) * per_union, iou * per_union
    of_around, of_center = tl.zeros_like(size), tl.zeros_like(size)
    if KIND == "giou":
        area = _product(around) + eps
        in_overlap += 1 / area
        in_size -= 1 / area
        of_around = (union / area / area)[:, None] * _swap(around)
    # Slopes that are NaN times lengths that are 0: NaN reaches every coordinate.
    of_overlap = in_overlap[:, None] * _swap(_overlap(a1, a2, b1, b2))
    of_size = in_size[:, None] * _swap(size)
    if KIND == "diou" or KIND == "ciou":
        offset = ((a1 - b1) + (a2 - b2)) * 0.5
        diagonal = tl.sum(around * around, 1) + eps
        ratio = tl.sum(offset * offset, 1) / diagonal
        of_around = (-2 * ratio / diagonal)[:, None] * around
        of_center = offset / diagonal[:, None]
    if KIND == "ciou":
        difference = _aspect_difference(a1, a2, b1, b2)
        v = difference * difference
        width, height = tl.split(size)
        square = width * width + height * height
        turn = -v / (1 - iou + v + eps) * difference * FOUR_OVER_PI / tl.where(square == 0, 1.0, square)
        of_size += tl.join(turn * height, -turn * width)
    of_size *= tl.where(a1 <= a2, 1.0, 0.0)
    of_around *= tl.where(reach >= 0, 1.0, 0.0)
    lower = of_center - of_overlap * _less(b1, a1) - of_size - of_around * _less(a1, b1)
    upper = of_center + of_overlap * _less(a2, b2) + of_size + of_around * _less(b2, a2)
    return lower, upper


@triton.jit
def _box_loss_kernel(
    boxes1_ptr, boxes2_ptr, losses_ptr, num_boxes, gamma: tl.float64, eps: tl.float64,
    BLOCK: tl.constexpr, KIND: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK
    a1, a2 = load_corners(boxes1_ptr, first, num_boxes, BLOCK, COMPUTE)
    b1, b2 = load_corners(boxes2_ptr, first, num_boxes, BLOCK, COMPUTE)
    i = first + tl.arange(0, BLOCK)
    losses = box_losses(a1, a2, b1, b2, number(gamma, COMPUTE), number(eps, COMPUTE), KIND)
    tl.store(losses_ptr + i, losses, mask=i < num_boxes)


@triton.jit
def _box_loss_backward_kernel(
    boxes1_ptr, boxes2_ptr, upstream_ptr, gradient_ptr, upstream_stride, num_boxes,
    gamma: tl.float64, eps: tl.float64,
    BLOCK: tl.constexpr, KIND: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BLOCK
    a1, a2 = load_corners(boxes1_ptr, first, num_boxes, BLOCK, COMPUTE)
    b1, b2 = load_corners(boxes2_ptr, first, num_boxes, BLOCK, COMPUTE)
    i = first + tl.arange(0, BLOCK)
    upstream = tl.load(upstream_ptr + i * upstream_stride, mask=i < num_boxes, other=0).to(COMPUTE)[:, None]
    lower, upper = box_gradients(a1, a2, b1, b2, number(gamma, COMPUTE), number(eps, COMPUTE), KIND)
    store_corners(gradient_ptr, first, num_boxes, upstream * lower, upstream * upper, BLOCK)


def _constants(boxes1: Tensor, boxes2: Tensor, kind: str) -> dict[str, object]:
    return {"BLOCK": BOXES_BLOCK, "KIND": kind, "COMPUTE": TRITON_DTYPE[result_dtype(boxes1, boxes2)]}


def box_loss(boxes1: Tensor, boxes2: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Losses [...] of boxes [..., 4] in pairs; see `reference.boxes.box_loss_forward`."""
    losses = torch.empty(boxes1.shape[:-1], dtype=result_dtype(boxes1, boxes2), device=boxes1.device)
    if losses.numel() > 0:
        _box_loss_kernel[(triton.cdiv(losses.numel(), BOXES_BLOCK),)](
            boxes1.contiguous(), boxes2.contiguous(), losses, losses.numel(), gamma, eps,
            **_constants(boxes1, boxes2, kind),
        )  # fmt: skip
    return losses


def box_loss_backward(boxes1: Tensor, boxes2: Tensor, upstream: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Gradient of `boxes1`, in its dtype; see `reference.boxes.box_loss_backward`."""
    gradient = torch.empty_like(boxes1, memory_format=torch.contiguous_format)
    if gradient.numel() > 0:
        upstream, stride = upstream_and_stride(upstream)
        _box_loss_backward_kernel[(triton.cdiv(upstream.numel(), BOXES_BLOCK),)](
            boxes1.contiguous(), boxes2.contiguous(), upstream, gradient, stride, upstream.numel(), gamma, eps,
            **_constants(boxes1, boxes2, kind),
        )  # fmt: skip
    return gradient

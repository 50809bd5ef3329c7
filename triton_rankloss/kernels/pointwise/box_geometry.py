"""Boxes as corners, and what box losses take from a pair of them: sizes, overlap, IoU, aspect.

Corners are tiles [BLOCK, 2] of (x, y), so one expression serves both axes: lower corners a1, b1 and upper a2, b2 of the
boxes a and b. boxes.py has the losses and their derivatives.

aspect_difference takes theta_b - theta_a as one angle, of (cross product, dot product) of the two (height, width): one
arctangent, of numbers that are not below 0.
"""

import triton
import triton.language as tl

from .angle import angle
from .rows import load_rows, store_rows


@triton.jit
def load_corners(boxes_ptr, first, num_boxes, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """(lower corners, upper corners) of boxes first:first + BLOCK."""
    boxes = load_rows(boxes_ptr, first, num_boxes, BLOCK, 4, COMPUTE)
    lower, upper = tl.split(tl.permute(tl.reshape(boxes, [BLOCK, 2, 2]), [0, 2, 1]))
    return lower, upper


@triton.jit
def store_corners(boxes_ptr, first, num_boxes, lower, upper, BLOCK: tl.constexpr):
    """Write the boxes that load_corners reads, in the dtype of the pointer."""
    boxes = tl.reshape(tl.permute(tl.join(lower, upper), [0, 2, 1]), [BLOCK, 4])
    store_rows(boxes_ptr, first, num_boxes, boxes, BLOCK, 4)


@triton.jit
def area_of(size):
    """Width times height."""
    width, height = tl.split(size)
    return width * height


@triton.jit
def swap_axes(size):
    """(Height, width) of (width, height)."""
    width, height = tl.split(size)
    return tl.join(height, width)


@triton.jit
def size_of(lower, upper):
    """Width and height, not below 0; a NaN stays one, which is how a NaN reaches U and with it every result."""
    return tl.maximum(upper - lower, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def less_or_half(x, y):
    """[x < y], 1/2 where they are equal."""
    return tl.where(x < y, 1.0, tl.where(x == y, 0.5, 0.0))


@triton.jit
def in_order(lower, upper):
    """The corners, with the coordinates of boxes that are reversed in them exchanged."""
    is_reversed = upper < lower
    return tl.where(is_reversed, upper, lower), tl.where(is_reversed, lower, upper)


@triton.jit
def overlap_of(a1, a2, b1, b2):
    """Width and height of the intersection; 0 on both axes if the boxes do not intersect."""
    lengths = tl.minimum(a2, b2) - tl.maximum(a1, b1)
    width, height = tl.split(lengths)
    return tl.where(((width > 0) & (height > 0))[:, None], lengths, 0.0)


@triton.jit
def iou_and_union(a1, a2, b1, b2, eps):
    """(IoU, U + eps)."""
    intersection = area_of(overlap_of(a1, a2, b1, b2))
    union = area_of(size_of(a1, a2)) + area_of(size_of(b1, b2)) - intersection + eps
    return intersection / union, union


@triton.jit
def aspect_difference(a1, a2, b1, b2):
    """2 (theta_b - theta_a) / pi, theta = arctan(width / height); a point has the angle 0."""
    width_a, height_a = tl.split(size_of(a1, a2))
    width_b, height_b = tl.split(size_of(b1, b2))
    height_a = tl.where((width_a == 0) & (height_a == 0), 1.0, height_a)
    height_b = tl.where((width_b == 0) & (height_b == 0), 1.0, height_b)
    cross = width_b * height_a - width_a * height_b
    turn = angle(tl.abs(cross), height_a * height_b + width_a * width_b)
    return tl.where(cross < 0, -turn, turn)

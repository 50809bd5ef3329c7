"""Losses of boxes (x1, y1, x2, y2) in pairs: boxes [..., 4] and [..., 4] to [...].

Rezatofighi et al., CVPR 2019, arXiv 1902.09630 (GIoU); Zheng et al., AAAI 2020, arXiv 1911.08287 (DIoU, CIoU); Wang
and Zhang, ICCV 2021, arXiv 2108.10809 (harmonic IoU).

Widths and heights are not taken below 0: a box with x2 < x1 is empty, but its corners have a centre, and a box around
them. Boxes that only touch do not intersect. Where ends coincide, autograd's derivative of a minimum or maximum is the
mean of the one-sided ones.

a and b are boxes as corners (lower, upper), each [2, ...]: x and y come first, whose arithmetic is fastest so.
"""

import math

import torch
from torch import Tensor

Corners = tuple[Tensor, Tensor]


def box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """I / (U + eps), with the areas I of the intersection and U of the union."""
    intersection, union = intersection_and_union(corners(boxes1), corners(boxes2))
    return intersection / (union + eps)


def box_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - IoU."""
    return 1 - box_iou(boxes1, boxes2, eps)


def generalized_box_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - IoU + (C - U) / (C + eps), with C the area of the smallest box around both."""
    a, b = corners(boxes1), corners(boxes2)
    intersection, union = intersection_and_union(a, b)
    around = area(enclosing_size(a, b))
    return 1 - intersection / (union + eps) + (around - union) / (around + eps)


def distance_box_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - IoU + d / (D + eps), with the squares d of the centres' distance and D of the enclosing box's diagonal."""
    a, b = corners(boxes1), corners(boxes2)
    intersection, union = intersection_and_union(a, b)
    return 1 - intersection / (union + eps) + center_distance(a, b, eps)


def complete_box_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """The distance IoU loss + alpha v, with v = (4 / pi^2) (theta_2 - theta_1)^2, alpha = v / (1 - IoU + v + eps)."""
    a, b = corners(boxes1), corners(boxes2)
    size1, size2 = size(a), size(b)
    intersection = intersection_area(a, b)
    iou_loss = 1 - intersection / (area(size1) + area(size2) - intersection + eps)
    v = 4 / math.pi**2 * (angle(size2) - angle(size1)).square()
    alpha = (v / (iou_loss + v + eps)).detach()
    return iou_loss + center_distance(a, b, eps) + alpha * v


def harmonic_iou_loss(boxes1: Tensor, boxes2: Tensor, gamma: float = 0.8, eps: float = 1e-7) -> Tensor:
    """(1 + IoU)^gamma (1 - IoU)."""
    iou = box_iou(boxes1, boxes2, eps)
    return (1 + iou).pow(gamma) * (1 - iou)


def corners(boxes: Tensor) -> Corners:
    """(lower, upper) of boxes [..., 4]."""
    lower, upper = boxes.movedim(-1, 0).contiguous().unflatten(0, (2, 2)).unbind()
    return lower, upper


def intersection_and_union(a: Corners, b: Corners) -> tuple[Tensor, Tensor]:
    """Areas of both."""
    intersection = intersection_area(a, b)
    return intersection, area(size(a)) + area(size(b)) - intersection


def intersection_area(a: Corners, b: Corners) -> Tensor:
    """I; relu has the derivative 0 at 0: there is none where boxes touch."""
    return area((torch.minimum(a[1], b[1]) - torch.maximum(a[0], b[0])).relu())


def size(box: Corners) -> Tensor:
    """(width, height), at least 0."""
    lower, upper = box
    return (upper - lower).clamp(min=0)  # clamp has the derivative 1 at 0: a line can become a box


def area(size: Tensor) -> Tensor:
    """Width times height."""
    width, height = size
    return width * height


def enclosing_size(a: Corners, b: Corners) -> Tensor:
    """(width, height) of the smallest box around all corners, and so around both centres."""
    (lower1, upper1), (lower2, upper2) = in_order(a), in_order(b)
    return torch.maximum(upper1, upper2) - torch.minimum(lower1, lower2)


def in_order(box: Corners) -> Corners:
    """The same corners, those of a box with x2 < x1 or y2 < y1 exchanged."""
    lower, upper = box
    is_reversed = upper < lower
    return torch.where(is_reversed, upper, lower), torch.where(is_reversed, lower, upper)


def center_distance(a: Corners, b: Corners, eps: float) -> Tensor:
    """d / (D + eps)."""
    offset = (a[0] - b[0] + (a[1] - b[1])) / 2
    return offset.square().sum(0) / (enclosing_size(a, b).square().sum(0) + eps)


def angle(size: Tensor) -> Tensor:
    """theta = atan(width / height); a right angle without height, and 0 for a point, which has no derivative."""
    width, height = size
    is_point = width.square() + height.square() == 0
    return torch.atan2(width.masked_fill(is_point, 0), height.masked_fill(is_point, 1))

"""Losses of boxes (x1, y1, x2, y2) in pairs: boxes [..., 4] and [..., 4] to [...].

Rezatofighi et al., CVPR 2019, arXiv 1902.09630 (GIoU); Zheng et al., AAAI 2020, arXiv 1911.08287 (DIoU, CIoU); Wang
and Zhang, ICCV 2021, arXiv 2108.10809 (harmonic IoU).

Widths and heights are not taken below 0: a box with x2 < x1 is empty. Boxes that only touch do not intersect. Where
ends coincide, autograd's derivative of a minimum or maximum is the mean of the one-sided ones.
"""

import math

import torch
from torch import Tensor


def box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """I / (U + eps), with the areas I of the intersection and U of the union."""
    intersection, union = intersection_and_union(boxes1, boxes2)
    return intersection / (union + eps)


def box_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - IoU."""
    return 1 - box_iou(boxes1, boxes2, eps)


def generalized_box_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - IoU + (C - U) / (C + eps), with C the area of the smallest box around both."""
    intersection, union = intersection_and_union(boxes1, boxes2)
    width, height = enclosing_size(boxes1, boxes2)
    around = width * height
    return 1 - intersection / (union + eps) + (around - union) / (around + eps)


def distance_box_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - IoU + d / (D + eps), with the squares d of the centres' distance and D of the enclosing box's diagonal."""
    return box_iou_loss(boxes1, boxes2, eps) + center_distance(boxes1, boxes2, eps)


def complete_box_iou_loss(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """The distance IoU loss + alpha v, with v = (4 / pi^2) (theta_2 - theta_1)^2, alpha = v / (1 - IoU + v + eps)."""
    iou_loss = box_iou_loss(boxes1, boxes2, eps)
    v = 4 / math.pi**2 * (angle(boxes2) - angle(boxes1)).square()
    alpha = (v / (iou_loss + v + eps)).detach()
    return iou_loss + center_distance(boxes1, boxes2, eps) + alpha * v


def harmonic_iou_loss(boxes1: Tensor, boxes2: Tensor, gamma: float = 0.8, eps: float = 1e-7) -> Tensor:
    """(1 + IoU)^gamma (1 - IoU)."""
    iou = box_iou(boxes1, boxes2, eps)
    return (1 + iou).pow(gamma) * (1 - iou)


def intersection_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of both."""
    left1, top1, right1, bottom1 = boxes1.unbind(-1)
    left2, top2, right2, bottom2 = boxes2.unbind(-1)
    # relu has the derivative 0 at 0: there is none where boxes touch.
    overlap_x = (torch.minimum(right1, right2) - torch.maximum(left1, left2)).relu()
    overlap_y = (torch.minimum(bottom1, bottom2) - torch.maximum(top1, top2)).relu()
    intersection = overlap_x * overlap_y
    (width1, height1), (width2, height2) = size(boxes1), size(boxes2)
    return intersection, width1 * height1 + width2 * height2 - intersection


def size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(width, height), at least 0."""
    left, top, right, bottom = boxes.unbind(-1)
    # clamp has the derivative 1 at 0: a line can become a box.
    return (right - left).clamp(min=0), (bottom - top).clamp(min=0)


def enclosing_size(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """(width, height) of the smallest box around both."""
    left1, top1, right1, bottom1 = boxes1.unbind(-1)
    left2, top2, right2, bottom2 = boxes2.unbind(-1)
    width = torch.maximum(right1, right2) - torch.minimum(left1, left2)
    height = torch.maximum(bottom1, bottom2) - torch.minimum(top1, top2)
    return width.clamp(min=0), height.clamp(min=0)


def center_distance(boxes1: Tensor, boxes2: Tensor, eps: float) -> Tensor:
    """d / (D + eps)."""
    left, top, right, bottom = (boxes1 - boxes2).unbind(-1)
    width, height = enclosing_size(boxes1, boxes2)
    distance = ((left + right) / 2).square() + ((top + bottom) / 2).square()
    return distance / (width.square() + height.square() + eps)


def angle(boxes: Tensor) -> Tensor:
    """theta = atan(width / height); a right angle without height, and 0 for a point, which has no derivative."""
    width, height = size(boxes)
    is_point = width.square() + height.square() == 0
    return torch.atan2(width.masked_fill(is_point, 0), height.masked_fill(is_point, 1))

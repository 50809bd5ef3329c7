"""Box losses of pairs of boxes a, b = (x1, y1, x2, y2).

    iou        1 - IoU,   IoU = I / (U + eps)                 I: area of the intersection, U = |a| + |b| - I
    giou       1 - IoU + (C - U) / (C + eps)                  C: area of the smallest box around both
    diou       1 - IoU + d / (D + eps)                        d: squared distance of the centres,
                                                              D: squared diagonal of the smallest box around both
    ciou       diou + alpha v,   v = (2 (theta_b - theta_a) / pi)^2,   theta = atan(width / height),
                                 alpha = v / (1 - IoU + v + eps), a constant in differentiation
    harmonic   (1 + IoU)^gamma (1 - IoU)

Rezatofighi et al., CVPR 2019, arXiv 1902.09630 (giou); Zheng et al., AAAI 2020, arXiv 1911.08287 (diou, ciou); Wang
and Zhang, ICCV 2021, arXiv 2108.10809 (harmonic). Widths and heights are not taken below 0: a box with x2 < x1 is
empty. Boxes that only touch do not intersect.

Gradient in a; all five are symmetric in a and b, so that in b is the same with the two exchanged. On each axis, with
the ends a1, a2 of a, s the size of a, o that of the intersection, e that of the box around both, and s', o', e' the
sizes on the other axis:
    dI/da2 =  o' [a2 < b2]     d|a|/da2 =  s'     dC/da2 =  e' [a2 > b2]     dD/da2 =  2 e [a2 > b2]
    dI/da1 = -o' [a1 > b1]     d|a|/da1 = -s'     dC/da1 = -e' [a1 < b1]     dD/da1 = -2 e [a1 < b1]
    dU = d|a| - dI,   dIoU = (dI - IoU dU) / (U + eps),   dd/da1 = dd/da2 = a's centre - b's
    d theta_a = (height d width - width d height) / (width^2 + height^2)
where [x < y] is 1/2 for x = y, as in torch.maximum: so the gradient of 1 - IoU is 0 where a = b.
"""

import math

import torch
from torch import Tensor

from .targets import accumulation_dtype
from .terms import widest_dtype


def box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """IoU of boxes [..., 4] in pairs: [...]."""
    intersection, union = intersection_and_union(*corners(boxes1), *corners(boxes2))
    return (intersection / (union + eps)).to(widest_dtype(boxes1, boxes2))


def box_loss_forward(boxes1: Tensor, boxes2: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Losses [...] of boxes [..., 4] in pairs; `kind` is a name at the top of this file."""
    a1, a2 = corners(boxes1)
    b1, b2 = corners(boxes2)
    intersection, union = intersection_and_union(a1, a2, b1, b2)
    iou = intersection / (union + eps)
    loss = (1 + iou).pow(gamma) * (1 - iou) if kind == "harmonic" else 1 - iou
    around = (torch.maximum(a2, b2) - torch.minimum(a1, b1)).clamp(min=0)
    if kind == "giou":
        area = product(around)
        loss = loss + (area - union) / (area + eps)
    if kind in ("diou", "ciou"):
        distance = ((a1 + a2 - b1 - b2) / 2).square().sum(-1)
        loss = loss + distance / (around.square().sum(-1) + eps)
    if kind == "ciou":
        v = aspect_difference(a1, a2, b1, b2).square()
        loss = loss + (v / (1 - iou + v + eps)).detach() * v
    return loss.to(widest_dtype(boxes1, boxes2))


def box_loss_backward(boxes1: Tensor, boxes2: Tensor, upstream: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Gradient of `boxes1`, in its dtype, from the upstream gradient [...] of the losses."""
    a1, a2 = corners(boxes1)
    b1, b2 = corners(boxes2)
    size = (a2 - a1).clamp(min=0)
    overlap = torch.minimum(a2, b2) - torch.maximum(a1, b1)
    overlap = torch.where((overlap > 0).all(-1, keepdim=True), overlap, 0)
    around = torch.maximum(a2, b2) - torch.minimum(a1, b1)
    not_empty = (a2 >= a1, a2 >= a1)
    outside = (less(a1, b1) * (around >= 0), less(b2, a2) * (around >= 0))
    around = around.clamp(min=0)

    intersection, union = (x.unsqueeze(-1) for x in intersection_and_union(a1, a2, b1, b2))
    iou = intersection / (union + eps)
    d_intersection = at_ends(overlap.flip(-1), less(b1, a1), less(a2, b2))
    d_union = at_ends(size.flip(-1), *not_empty) - d_intersection
    d_iou = (d_intersection - iou * d_union) / (union + eps)
    slope = gamma * (1 + iou).pow(gamma - 1) * (1 - iou) - (1 + iou).pow(gamma) if kind == "harmonic" else -1
    gradient = slope * d_iou
    if kind == "giou":  # (C - U) / (C + eps) is 1 - (U + eps) / (C + eps)
        area = product(around).unsqueeze(-1) + eps
        gradient = gradient + ((union + eps) / area * at_ends(around.flip(-1), *outside) - d_union) / area
    if kind in ("diou", "ciou"):
        offset = (a1 + a2 - b1 - b2) / 2
        diagonal = around.square().sum(-1, keepdim=True) + eps
        ratio = offset.square().sum(-1, keepdim=True) / diagonal
        gradient = gradient + (torch.cat([offset, offset], -1) - ratio * at_ends(2 * around, *outside)) / diagonal
    if kind == "ciou":
        difference = aspect_difference(a1, a2, b1, b2).unsqueeze(-1)
        v = difference.square()
        turn = size.flip(-1) * size.new_tensor([1, -1]) / size.square().sum(-1, keepdim=True)
        turn = torch.where((size == 0).all(-1, keepdim=True), 0, turn)  # a point has no angle
        gradient = gradient - v / (1 - iou + v + eps) * difference * (4 / math.pi) * at_ends(turn, *not_empty)
    return (upstream.unsqueeze(-1) * gradient).to(boxes1.dtype)


def corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(x1, y1) and (x2, y2), each [..., 2]."""
    boxes = boxes.to(accumulation_dtype(boxes))
    return boxes[..., :2], boxes[..., 2:]


def intersection_and_union(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
    """Areas [...] of the intersection and of the union."""
    overlap = torch.minimum(a2, b2) - torch.maximum(a1, b1)
    intersection = torch.where((overlap > 0).all(-1), product(overlap), 0)
    return intersection, product((a2 - a1).clamp(min=0)) + product((b2 - b1).clamp(min=0)) - intersection


def aspect_difference(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> Tensor:
    """2 (theta_b - theta_a) / pi, from -1 to 1."""
    width_a, height_a = (a2 - a1).clamp(min=0).unbind(-1)
    width_b, height_b = (b2 - b1).clamp(min=0).unbind(-1)
    return (torch.atan2(width_b, height_b) - torch.atan2(width_a, height_a)) * (2 / math.pi)


def product(size: Tensor) -> Tensor:
    """Width times height."""
    return size[..., 0] * size[..., 1]


def less(x: Tensor, y: Tensor) -> Tensor:
    """[x < y], 1/2 where they are equal."""
    return ((x < y).to(x.dtype) + (x <= y).to(x.dtype)) / 2


def at_ends(slope: Tensor, at_lower: Tensor, at_upper: Tensor) -> Tensor:
    """Gradient [..., 4] of a length with derivative `slope`: minus at its lower end, plus at its upper end."""
    return torch.cat([-slope * at_lower, slope * at_upper], -1)

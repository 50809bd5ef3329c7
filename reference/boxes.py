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
where [x < y] is 1/2 for x = y, as in torch.maximum: so the gradient of 1 - IoU is 0 where a = b. With the sign of
a1 - b1 and a2 - b2 that is [a1 < b1] = (1 - sign) / 2 and [a2 > b2] = (1 + sign) / 2.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from . import blocks
from .targets import accumulation_dtype
from .terms import widest_dtype


def box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """IoU of boxes [..., 4] in pairs: [...]."""
    a, b = corners(boxes1), corners(boxes2)
    intersection = area(overlap(a, b))
    union = area(size(a)) + area(size(b)) - intersection
    return (intersection / (union + eps)).to(widest_dtype(boxes1, boxes2))


def box_loss_forward(boxes1: Tensor, boxes2: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Losses [...] of boxes [..., 4] in pairs; `kind` is a name at the top of this file."""
    losses = [losses_of(corners(a), corners(b), kind, gamma, eps) for a, b in in_blocks(boxes1, boxes2)]
    return torch.cat(losses).view(boxes1.shape[:-1]).to(widest_dtype(boxes1, boxes2))


def losses_of(a: Tensor, b: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Losses [M] of corners [2, 2, M]."""
    intersection = area(overlap(a, b))
    union = area(size(a)) + area(size(b)) - intersection
    iou = intersection / (union + eps)
    if kind == "harmonic":
        return (1 + iou).pow(gamma) * (1 - iou)
    loss = 1 - iou
    around = enclosing(a, b).clamp(min=0)
    if kind == "giou":
        loss = loss + (area(around) - union) / (area(around) + eps)
    if kind in ("diou", "ciou"):
        loss = loss + center_offset(a, b).square().sum(0) / (around.square().sum(0) + eps)
    if kind == "ciou":
        v = aspect_difference(size(a), size(b)).square()
        loss = loss + (v / (1 - iou + v + eps)).detach() * v
    return loss


def box_loss_backward(boxes1: Tensor, boxes2: Tensor, upstream: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Gradient of `boxes1`, in its dtype, from the upstream gradient [...] of the losses."""
    gradient = torch.empty_like(boxes1, memory_format=torch.contiguous_format)
    for a, b, of_losses, of_a in in_blocks(boxes1, boxes2, upstream.unsqueeze(-1), gradient):
        slopes = slopes_of(corners(a), corners(b), kind, gamma, eps).mul_(of_losses.squeeze(1))
        of_a.copy_(slopes.flatten(0, 1).t())
    return gradient


def slopes_of(a: Tensor, b: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Derivatives of the losses in a, both [2, 2, M]."""
    ends = a.new_tensor([-1, 1]).view(2, 1, 1)  # derivatives of a length in the coordinates of its ends
    outer = (a - b).sign().add_(ends).mul_(0.5)  # the same of the box around both; of the intersection, ends - outer
    shared, own = overlap(a, b), size(a)
    intersection = area(shared)
    union = area(own) + area(size(b)) - intersection
    iou = intersection / (union + eps)
    not_empty = a[1] >= a[0]
    d_intersection = torch.where(intersection > 0, shared.flip(0), 0) * (ends - outer)
    d_union = torch.where(not_empty, own.flip(0), 0) * ends - d_intersection
    d_iou = torch.addcmul(d_intersection, iou, d_union, value=-1).div_(union + eps)
    if kind == "harmonic":
        return (gamma * (1 + iou).pow(gamma - 1) * (1 - iou) - (1 + iou).pow(gamma)) * d_iou
    reach = enclosing(a, b)
    around = reach.clamp(min=0)
    slopes = d_iou.neg_()
    if kind == "giou":  # (C - U) / (C + eps) is 1 - (U + eps) / (C + eps)
        d_around = torch.where(reach >= 0, around.flip(0), 0) * outer
        c = area(around) + eps
        slopes += d_around.mul_((union + eps) / c).sub_(d_union).div_(c)
    if kind in ("diou", "ciou"):
        offset, diagonal = center_offset(a, b), around.square().sum(0) + eps
        ratio = offset.square().sum(0) / diagonal
        slopes += (offset - ratio * 2 * around * outer) / diagonal
    if kind == "ciou":
        difference = aspect_difference(own, size(b))
        v = difference.square()
        turn = own.flip(0) * own.new_tensor([[1], [-1]]) / own.square().sum(0)
        turn = torch.where((own == 0).all(0), 0, turn)  # a point has no angle
        slopes -= v / (1 - iou + v + eps) * difference * (4 / math.pi) * torch.where(not_empty, turn, 0) * ends
    return slopes


def in_blocks(*values: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Values [..., D] of the boxes as consecutive [M, D]; a box takes the room of eight logits, in float64."""
    rows = (tensor.reshape(-1, tensor.shape[-1]).split(max(1, blocks.BLOCK // 8)) for tensor in values)
    return zip(*rows, strict=True)


def corners(boxes: Tensor) -> Tensor:
    """((x1, y1), (x2, y2)) of boxes [..., 4], [2, 2, ...]: with the boxes last, whose arithmetic is fastest so."""
    coordinates = boxes.movedim(-1, 0).to(accumulation_dtype(boxes), memory_format=torch.contiguous_format)
    return coordinates.unflatten(0, (2, 2))


def size(box: Tensor) -> Tensor:
    """(width, height) of corners [2, 2, ...], at least 0: [2, ...]."""
    return (box[1] - box[0]).clamp(min=0)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """(width, height) of the intersection, at least 0."""
    return (torch.minimum(a[1], b[1]) - torch.maximum(a[0], b[0])).clamp(min=0)


def enclosing(a: Tensor, b: Tensor) -> Tensor:
    """(width, height) of the smallest box around both, below 0 where both have x2 < x1."""
    return torch.maximum(a[1], b[1]) - torch.minimum(a[0], b[0])


def center_offset(a: Tensor, b: Tensor) -> Tensor:
    """(x, y) from the centre of b to that of a."""
    return (a - b).sum(0) / 2


def aspect_difference(size_a: Tensor, size_b: Tensor) -> Tensor:
    """2 (theta_b - theta_a) / pi, from -1 to 1."""
    return (torch.atan2(*size_b) - torch.atan2(*size_a)) * (2 / math.pi)


def area(size: Tensor) -> Tensor:
    """Width times height."""
    return size[0] * size[1]

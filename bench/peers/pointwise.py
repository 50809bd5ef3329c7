"""Losses that take every logit or box once: ours, the formula in eager autograd, and torch.compile of that formula.

Formulas take labels and make their dense targets themselves, which a compiler fuses away. The yardstick is the sigmoid
focal loss that one-stage detectors already pay, as torchvision writes it.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus


def wide(logits: Tensor) -> Tensor:
    """Logits in the dtype to compute in."""
    return logits if logits.dtype == torch.float64 else logits.float()


def one_hot(logits: Tensor, labels: Tensor) -> Tensor:
    """Dense targets [..., C] of labels."""
    return (labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)).to(logits.dtype)


def focal_terms(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss of every logit."""
    p = torch.sigmoid(logits)
    ce = binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p_of_truth = p * targets + (1 - p) * (1 - targets)
    return (alpha * targets + (1 - alpha) * (1 - targets)) * (1 - p_of_truth) ** gamma * ce


def focal(logits: Tensor, labels: Tensor, divisor: Tensor) -> Tensor:
    """Sigmoid focal loss."""
    x = wide(logits)
    return focal_terms(x, one_hot(x, labels)).sum() / divisor


def iou_balanced_focal(logits: Tensor, labels: Tensor, iou: Tensor, divisor: Tensor, eta: float = 1.5) -> Tensor:
    """IoU-balanced sigmoid focal loss; `iou` per anchor."""
    x = wide(logits)
    targets = one_hot(x, labels)
    terms = focal_terms(x, targets)
    at_positives = terms * targets
    share = iou.unsqueeze(-1) ** eta
    z = (at_positives.sum() / ((at_positives * share).sum() + 1e-6)).detach()
    return (terms * torch.where(targets > 0, z * share, 1)).sum() / divisor


def iou_balanced_cross_entropy(logits: Tensor, labels: Tensor, iou: Tensor, eta: float = 1.5) -> Tensor:
    """IoU-balanced softmax cross-entropy; `iou` per sample, the last channel is the background."""
    x = wide(logits).flatten(0, -2)
    labels, iou = labels.reshape(-1), iou.reshape(-1)
    terms = cross_entropy(x, labels, reduction="none")
    is_positive = labels != x.shape[1] - 1
    share = torch.where(is_positive, iou**eta, 0)
    z = (torch.where(is_positive, terms, 0).sum() / ((terms * share).sum() + 1e-6)).detach()
    return (terms * torch.where(is_positive, z * share, 1)).sum() / labels.numel()


def dr(
    logits: Tensor, labels: Tensor, margin: float = 0.5, pos_lambda: float = 1.0,
    neg_lambda: float = 0.1 / math.log(3.5), L: float = 6.0, tau: float = 4.0,
) -> Tensor:  # fmt: skip
    """DR Loss over all candidates."""
    x = wide(logits)
    is_positive = one_hot(x, labels).reshape(-1) > 0
    p = torch.sigmoid(x).reshape(-1)
    q_of_positives = torch.where(is_positive, -p / pos_lambda, -torch.inf).softmax(0)
    q_of_negatives = torch.where(is_positive, -torch.inf, p / neg_lambda).softmax(0)
    return tau / L * softplus(L * ((q_of_negatives * p).sum() - (q_of_positives * p).sum() + margin))


def harmonic(
    logits: Tensor, labels: Tensor, positions: Tensor, boxes: Tensor, target_boxes: Tensor, divisor: Tensor
) -> Tensor:
    """Harmonic loss of a head with focal classification, and boxes of the positives at flat `positions`."""
    x = wide(logits)
    terms = focal_terms(x, one_hot(x, labels))
    c = terms.reshape(-1)[positions]
    iou, _ = box_iou(boxes, target_boxes)
    loc = 1.5 * (1 + iou) ** 0.8 * (1 - iou)
    return (terms.sum() - c.sum() + ((1 + torch.exp(-loc)) * c + (1 + torch.exp(-c)) * loc).sum()) / divisor


def box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> tuple[Tensor, Tensor]:
    """(IoU, union) of boxes in pairs."""
    low, high = torch.maximum(boxes1[:, :2], boxes2[:, :2]), torch.minimum(boxes1[:, 2:], boxes2[:, 2:])
    width, height = (high - low).clamp(min=0).unbind(1)
    intersection = width * height
    union = area(boxes1) + area(boxes2) - intersection
    return intersection / (union + eps), union


def area(boxes: Tensor) -> Tensor:
    """Areas [P] of boxes [P, 4]."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def giou(boxes: Tensor, target_boxes: Tensor, eps: float = 1e-7) -> Tensor:
    """Sum of the GIoU losses of boxes in pairs."""
    iou, union = box_iou(boxes, target_boxes, eps)
    low, high = torch.minimum(boxes[:, :2], target_boxes[:, :2]), torch.maximum(boxes[:, 2:], target_boxes[:, 2:])
    around = area(torch.cat([low, high], 1))
    return (1 - iou + (around - union) / (around + eps)).sum()

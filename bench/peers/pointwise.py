"""Losses that take every logit or box once: the reference's formulas, for eager autograd and for a compiler.

They make their dense targets of labels themselves, which a compiler fuses away. A formula on separate negatives gets
all logits, those of the positives so low that they add nothing: to select would cost more than the formula. Where that
would not be exact, in DR Loss and the softmax, masks do it.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus

from triton_rankloss.reference import boxes, harmonic, iou_balanced
from triton_rankloss.reference.focal import focal

from . import Given
from .ranking import wide

NOTHING = -100.0  # its focal loss is below 1e-80


def one_hot(x: Tensor, given: Given) -> Tensor:
    """Where the positives are, [..., C]."""
    return given["labels"].unsqueeze(-1) == torch.arange(x.shape[-1], device=x.device)


def cut(logits: Tensor, given: Given) -> tuple[Tensor, Tensor]:
    """(positives [P], logits of which those of positives are NOTHING)."""
    x = wide(logits)
    return x.reshape(-1)[given["positions"]], x.masked_fill(one_hot(x, given), NOTHING).reshape(-1)


def sigmoid_focal(logits: Tensor, given: Given) -> Tensor:
    """As torchvision writes it: the yardstick, which one-stage detectors already pay."""
    x = wide(logits)
    targets, p = one_hot(x, given).to(x.dtype), torch.sigmoid(x)
    ce = binary_cross_entropy_with_logits(x, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    return ((0.25 * targets + 0.75 * (1 - targets)) * ce * (1 - p_t) ** 2).sum() / given["num_positives"]


def iou_balanced_focal(logits: Tensor, given: Given) -> Tensor:
    positives, negatives = cut(logits, given)
    iou, num_positives = given["iou"], given["num_positives"]
    return iou_balanced.iou_balanced_focal_loss(positives, negatives, iou, 1.5, 0.25, 2.0, num_positives)


def iou_balanced_cross_entropy(logits: Tensor, given: Given) -> Tensor:
    x, labels, iou = wide(logits).flatten(0, -2), given["softmax_labels"].flatten(), given["iou_per_anchor"].flatten()
    terms, is_negative = cross_entropy(x, labels, reduction="none"), labels == x.shape[1] - 1
    of_negatives, of_positives = torch.where(is_negative, terms, 0), torch.where(is_negative, 0, terms)
    sums = iou_balanced.sum_terms(of_negatives, of_positives, iou_balanced.iou_weights(iou, 1.5))
    return iou_balanced.balance(sums, given["num_samples"])


def dr(logits: Tensor, given: Given) -> Tensor:
    x = wide(logits)
    is_positive, p = one_hot(x, given).reshape(-1), torch.sigmoid(x).reshape(-1)
    q_of_positives = torch.where(is_positive, -p, -torch.inf).softmax(0)
    q_of_negatives = torch.where(is_positive, -torch.inf, p * (math.log(3.5) / 0.1)).softmax(0)
    return 4 / 6 * softplus(6 * ((q_of_negatives * p).sum() - (q_of_positives * p).sum() + 0.5))


def harmonic_focal(logits: Tensor, given: Given) -> Tensor:
    positives, negatives = cut(logits, given)
    loc = harmonic.localization_loss(given["boxes"], given["target_boxes"])
    terms = 0.25 * focal(positives, 2.0), 0.75 * focal(-negatives, 2.0)
    return harmonic.harmonic_detection_loss(*terms, loc, given["num_positives"])


def giou(pred_boxes: Tensor, given: Given) -> Tensor:
    return boxes.generalized_box_iou_loss(pred_boxes, given["target_boxes"]).sum()


FORMULAS = {loss.__name__: loss for loss in (iou_balanced_focal, iou_balanced_cross_entropy, dr, giou)}
FORMULAS["harmonic"] = harmonic_focal

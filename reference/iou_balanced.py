"""IoU-balanced losses (Wu et al., arXiv 1908.05641).

Classification. With terms l_i of the positives, u_i their IoU, and terms l_j of the negatives,
    loss = (sum_j l_j + Z sum_i u_i^eta l_i) / avg_factor,   Z = sum_i l_i / (sum_i u_i^eta l_i + 1e-6)
so that the positives' sum stays what it was (but for the 1e-6) while those of high IoU weigh more in it. The weights
Z u_i^eta are constants in differentiation. Terms: focal, binary cross-entropy, softmax cross-entropy.

Localization. With d = pred - target,
    loss = loss_weight sum_i u_i^lambda sum_c smooth_l1(d_ic) / avg_factor
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, smooth_l1_loss

from . import add_up
from .focal import focal, focal_of_negatives

EPS = 1e-6


def iou_balanced_focal_loss(
    positives: Tensor,
    negatives: Tensor,
    iou: Tensor,
    eta: float,
    alpha: float,
    gamma: float,
    avg_factor: float | Tensor,
) -> Tensor:
    """Loss of the logits [P], whose IoU are `iou` [P], and [N]."""
    of_positives, of_negatives = alpha * focal(positives, gamma), (1 - alpha) * focal_of_negatives(negatives, gamma)
    return balance(sum_terms(of_negatives, of_positives, iou_weights(iou, eta)), avg_factor)


def iou_balanced_bce_loss(
    positives: Tensor, negatives: Tensor, iou: Tensor, eta: float, avg_factor: float | Tensor
) -> Tensor:
    """Loss of the logits [P], whose IoU are `iou` [P], and [N]."""
    of_positives, of_negatives = -logsigmoid(positives), -logsigmoid(-negatives)
    return balance(sum_terms(of_negatives, of_positives, iou_weights(iou, eta)), avg_factor)


def iou_balanced_cross_entropy_loss(
    logits: Tensor, labels: Tensor, iou: Tensor, eta: float, background: int, avg_factor: float | Tensor
) -> Tensor:
    """Loss of the logits [M, K] of samples with `labels` [M] and `iou` [M]; that of the background does not count."""
    terms, is_negative = cross_entropy(logits, labels, reduction="none"), labels == background
    weights = iou_weights(iou[~is_negative], eta)
    return balance(sum_terms(terms[is_negative], terms[~is_negative], weights), avg_factor)


def iou_balanced_smooth_l1_loss(
    pred: Tensor,
    target: Tensor,
    iou: Tensor,
    lambda_: float,
    beta: float,
    loss_weight: float,
    avg_factor: float | Tensor,
) -> Tensor:
    """Loss of the offsets `pred` and `target` [P, D] of boxes with `iou` [P]."""
    beta = max(beta, torch.finfo(pred.dtype).tiny)  # for 0 torch takes another function, where NaN has the gradient 0
    terms = smooth_l1_loss(pred, target, beta=beta, reduction="none").sum(-1)
    return loss_weight * add_up(iou_weights(iou, lambda_) * terms) / avg_factor


def sum_terms(of_negatives: Tensor, of_positives: Tensor, weights: Tensor) -> Tensor:
    """(sum_j l_j, sum_i l_i, sum_i u_i^eta l_i), [3]."""
    return torch.stack([add_up(of_negatives), add_up(of_positives), add_up(weights * of_positives)])


def balance(sums: Tensor, avg_factor: float | Tensor) -> Tensor:
    """The loss of classification, from the sums [3]."""
    of_negatives, of_positives, weighted = sums
    z = of_positives / (weighted + EPS)
    return (of_negatives + z.detach() * weighted) / avg_factor


def iou_weights(iou: Tensor, exponent: float) -> Tensor:
    """u^exponent; an IoU that rounding left below 0 counts as 0."""
    return iou.detach().clamp(min=0) ** exponent

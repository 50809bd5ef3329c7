"""Harmonic losses (Wang and Zhang, ICCV 2021, arXiv 2108.10809) of positives i and negatives j.

A positive has the classification loss c_i and the localization loss l_i, a negative the classification loss c_j.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, smooth_l1_loss

from .boxes import harmonic_iou_loss
from .focal import focal as focal


def harmonic_loss(classification: Tensor, localization: Tensor, detach_factors: bool = False) -> Tensor:
    """h(c, l) = (1 + exp(-l)) c + (1 + exp(-c)) l; the factors are constants to autograd with `detach_factors`."""
    factor_c, factor_l = 1 + torch.exp(-localization), 1 + torch.exp(-classification)
    if detach_factors:
        factor_c, factor_l = factor_c.detach(), factor_l.detach()
    return factor_c * classification + factor_l * localization


def task_contrastive_loss(
    rows: Tensor, channels: Tensor, iou: Tensor, margin: float = 0.2, activation: str = "sigmoid"
) -> Tensor:
    """t_i = max(0, |p_i - u_i| - margin) / (1 + exp(H_i)), [P], of logits [P, C] at the positives' anchors.

    p_i is the probability of the positive's channel, u_i its IoU, and H_i the entropy of the prediction: of the
    distribution over the channels for "softmax", the sum of those of C yes-or-no answers for "sigmoid".
    """
    if activation == "softmax":
        log_p = rows.log_softmax(1)
        p = log_p.exp()
        entropy = -(p * log_p).sum(1)
    else:
        p = rows.sigmoid()
        entropy = -(p * logsigmoid(rows) + (-rows).sigmoid() * logsigmoid(-rows)).sum(1)
    offset = p.gather(1, channels.unsqueeze(1)).squeeze(1) - iou
    sign = torch.where(offset.isnan(), offset, offset.sign()).detach()  # the derivative of abs at NaN would be 0
    return (sign * offset - margin).relu() * (-entropy).sigmoid()


def localization_loss(
    pred_boxes: Tensor,
    target_boxes: Tensor,
    pred_deltas: Tensor | None = None,
    target_deltas: Tensor | None = None,
    beta: float = 1.0,
    iou_weight: float = 1.5,
    gamma: float = 0.8,
    eps: float = 1e-7,
) -> Tensor:
    """l_i = sum_c smooth_l1(delta_ic) + iou_weight (1 + IoU_i)^gamma (1 - IoU_i), of boxes [P, 4], deltas [P, D]."""
    losses = iou_weight * harmonic_iou_loss(pred_boxes, target_boxes, gamma, eps)
    if pred_deltas is None or target_deltas is None:
        return losses
    # For beta = 0 torch takes another function, in which NaN has the gradient 0.
    beta = max(beta, torch.finfo(pred_deltas.dtype).tiny)
    return losses + smooth_l1_loss(pred_deltas, target_deltas, reduction="none", beta=beta).sum(-1)


def harmonic_detection_loss(
    positives: Tensor, negatives: Tensor, localization: Tensor, avg_factor: Tensor, detach_factors: bool = False
) -> Tensor:
    """(sum_i h(c_i, l_i) + sum_j c_j) / avg_factor, of c_i [P], c_j [N] and l_i [P].

    With a sigmoid, c is weight * focal(x) for a positive with logit x and weight * focal(-x) for a negative; with a
    softmax it is the cross-entropy of a row of logits, and negatives are the rows of the background.
    """
    harmonic = harmonic_loss(positives, localization, detach_factors)
    return (harmonic.sum() + negatives.sum(dtype=harmonic.dtype)) / avg_factor

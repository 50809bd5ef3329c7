"""Harmonic loss of a whole detection head (Wang and Zhang, ICCV 2021, arXiv 2108.10809).

Over positives i with classification loss c_i and localization loss l_i, and negatives j,
    loss = (sum_i h(c_i, l_i) + sum_j c_j) / avg_factor       h: see harmonic.py
    l_i = sum_c smooth_l1(delta_ic) + iou_weight (1 + IoU_i)^gamma (1 - IoU_i)
with for c of a logit x or of the logits of a sample
    sigmoid    weight sigmoid(-s)^gamma softplus(-s), s = x for a positive, -x for a negative; each logit by itself
    softmax    log(sum_c exp(x_c)) - x_label; negatives are the samples of the background

Gradient: that of c_j times scale = 1 / avg_factor, of c_i times scale dh/dc_i, of l_i times scale dh/dl_i. Backward
keeps scale and weights = scale (dh/dc_i, dh/dl_i), [2, P].
"""

import torch
from torch import Tensor

from . import focal
from .boxes import box_loss_backward, box_loss_forward
from .harmonic import harmonic_forward, harmonic_slopes
from .targets import accumulation_dtype, result_dtype
from .terms import (
    classes,
    cross_entropy,
    cross_entropy_gradient,
    difference,
    divisor,
    smooth_l1,
    smooth_l1_slope,
    widest_dtype,
)


def localization_forward(
    pred_boxes: Tensor, target_boxes: Tensor, pred_deltas: Tensor | None, target_deltas: Tensor | None, beta: float,
    iou_weight: float, gamma: float, eps: float,
) -> Tensor:  # fmt: skip
    """l [P]; without deltas the IoU part alone."""
    losses = iou_weight * box_loss_forward(pred_boxes, target_boxes, "harmonic", gamma, eps)
    if pred_deltas is None or target_deltas is None:
        return losses
    terms = smooth_l1(difference(pred_deltas, target_deltas), beta).sum(-1)
    return (losses + terms).to(widest_dtype(pred_boxes, target_boxes, pred_deltas, target_deltas))


def localization_backward(
    pred_boxes: Tensor, target_boxes: Tensor, pred_deltas: Tensor | None, target_deltas: Tensor | None,
    upstream: Tensor, beta: float, iou_weight: float, gamma: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of `pred_boxes` and of `pred_deltas`, in their dtypes; the second is empty without deltas."""
    of_boxes = box_loss_backward(pred_boxes, target_boxes, iou_weight * upstream, "harmonic", gamma, eps)
    if pred_deltas is None or target_deltas is None:
        return of_boxes, pred_boxes.new_empty(0)
    slopes = smooth_l1_slope(difference(pred_deltas, target_deltas), beta)
    return of_boxes, (upstream.unsqueeze(-1) * slopes).to(pred_deltas.dtype).contiguous()


def check_localization(localization: Tensor, positions: Tensor) -> None:
    """One localization loss, and so one box, for each positive."""
    if localization.shape != positions.shape:
        raise ValueError(
            f"pred_boxes must hold one box for each of the {positions.numel()} positives; got {localization.numel()}"
        )


def detection_forward(
    logits: Tensor, targets: Tensor, positions: Tensor, localization: Tensor, activation: str, background: int,
    weights: tuple[float, float], gamma: float, detach_factors: bool, avg_factor: float | Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(loss, scale [], weights [2, P]) of the positives at flat `positions`, with their localization losses [P]."""
    dtype = accumulation_dtype(logits)
    if activation == "softmax":
        terms = cross_entropy(logits, targets)
        of_negatives = torch.where(classes(logits, targets, background)[0], terms, 0).sum(dtype=dtype)
        c = terms.reshape(-1)[positions // logits.shape[-1]]
        default = (targets >= 0).sum()
    else:
        of_negatives = weights[0] * focal.sum_of_negatives(logits, targets, gamma)
        c = weights[1] * focal.at_positives(logits, positions, gamma)
        default = torch.full((), positions.numel(), device=logits.device)
    c, loc = c.to(dtype), localization.to(dtype)
    scale = 1 / divisor(avg_factor, default.to(dtype)).detach()
    loss = scale * (of_negatives + harmonic_forward(c, loc, detach_factors).sum())
    slopes = torch.stack(harmonic_slopes(c.detach(), loc.detach(), detach_factors))
    return loss.to(result_dtype(logits)), scale.to(result_dtype(logits)), (scale * slopes).to(result_dtype(logits))


def detection_backward(
    logits: Tensor, targets: Tensor, positions: Tensor, scale: Tensor, of_positives: Tensor, upstream: Tensor,
    activation: str, background: int, weights: tuple[float, float], gamma: float,
) -> Tensor:  # fmt: skip
    """Gradient of `logits`, in their dtype; `of_positives` [P] are scale dh/dc, the gradients of the positives' c."""
    of_negative, of_positives = scale * upstream, of_positives * upstream
    if activation == "softmax":
        rows = torch.where(classes(logits, targets, background)[0], of_negative, 0)
        rows = rows.reshape(-1).index_put((positions // logits.shape[-1],), of_positives).view(rows.shape)
        return cross_entropy_gradient(logits, targets, rows)
    return focal.gradient(logits, targets, positions, weights[0] * of_negative, weights[1] * of_positives, gamma)

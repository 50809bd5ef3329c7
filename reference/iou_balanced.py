"""IoU-balanced losses (Wu et al., arXiv 1908.05641).

Classification. Let l_i be the terms of the positives, of IoU u_i, and l_j those of the negatives:
    loss = (sum_j l_j + Z sum_i u_i^eta l_i) / avg_factor,   Z = sum_i l_i / (sum_i u_i^eta l_i + 1e-6)
so that the positives' sum stays what it was (but for the 1e-6) while those of high IoU weigh more in it. Z u_i^eta is a
constant in differentiation, so the gradient is that of every term times
    1 / avg_factor for a negative,   Z u_i^eta / avg_factor for a positive.
`scale` = (1 / avg_factor, Z / avg_factor), with the class weights below in it, is all that backward needs of the sums.
With a process group the sums are over all ranks, and `scale` is multiplied by their number: the mean of the gradients
over the ranks is then the gradient of the loss.

Terms, of a logit x, with s = x for a positive and s = -x for a negative:
    focal      weight sigmoid(-s)^gamma softplus(-s)     weight: alpha for positives, 1 - alpha for negatives
    bce        the same with gamma = 0 and weights 1
    softmax    log(sum_c exp(x_c)) - x_label             positives: labels other than the background
with derivatives: of focal in s, weight -sigmoid(-s)^gamma (gamma sigmoid(s) softplus(-s) + sigmoid(-s)); of softmax in
x_c, softmax(x)_c - [c = label].

Localization, of d = pred - target:
    loss = loss_weight sum_i u_i^lambda sum_c smooth(d_ic) / avg_factor
    smooth(d) = d^2 / (2 beta) for |d| < beta, else |d| - beta / 2;   its derivative: clip(d / beta, -1, 1)
"""

import torch
from torch import Tensor

from . import distributed, focal
from .candidates import at_positives
from .targets import accumulation_dtype, positive_positions
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

EPS = 1e-6


def focal_forward(
    logits: Tensor, targets: Tensor, iou: Tensor, eta: float, weights: tuple[float, float], gamma: float,
    avg_factor: float | Tensor | None, group: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, scale [2]); `iou` per anchor, or of the shape of the logits; class `weights` of (negatives, positives)."""
    if group is not None:
        agree_on_focal(logits, eta, weights, gamma, avg_factor, group)
    positions = positive_positions(logits, targets)
    terms = weights[1] * focal.at_positives(logits, positions, gamma)
    of_negatives = weights[0] * focal.sum_of_negatives(logits, targets, gamma)
    share = weights_of(at_positives(iou, logits, positions).to(terms.dtype), eta)
    loss, scale = balance(of_negatives, terms, share, avg_factor, positions.numel(), group)
    return loss, torch.stack([weights[0] * scale[0], weights[1] * scale[1]])


def focal_backward(
    logits: Tensor, targets: Tensor, iou: Tensor, scale: Tensor, upstream: Tensor, eta: float, gamma: float
) -> Tensor:
    """Gradient of `logits`, in their dtype, from `scale` and the upstream gradient of the loss."""
    of_negative, of_positive = (scale * upstream).unbind()
    positions = positive_positions(logits, targets)
    share = weights_of(at_positives(iou, logits, positions).to(scale.dtype), eta)
    return focal.gradient(logits, targets, positions, of_negative, of_positive * share, gamma)


def cross_entropy_forward(
    logits: Tensor, labels: Tensor, iou: Tensor, eta: float, background: int, avg_factor: float | Tensor | None,
    group: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, scale [2]) of logits [..., K]; `labels` and `iou` [...]."""
    if group is not None:
        agree_on_cross_entropy(logits, eta, background, avg_factor, group)
    is_background, is_positive = classes(logits, labels, background)
    terms = cross_entropy(logits, labels)
    share = weights_of(iou[is_positive].to(terms.dtype), eta)
    of_background = torch.where(is_background, terms, 0).sum(dtype=accumulation_dtype(logits))
    return balance(of_background, terms[is_positive], share, avg_factor, (labels >= 0).sum(), group)


def cross_entropy_backward(
    logits: Tensor, labels: Tensor, iou: Tensor, scale: Tensor, upstream: Tensor, eta: float, background: int
) -> Tensor:
    """Gradient of `logits`, in their dtype, from `scale` and the upstream gradient of the loss."""
    is_background, is_positive = classes(logits, labels, background)
    of_background, of_positive = (scale * upstream).unbind()
    rows = torch.where(is_background, of_background, torch.zeros_like(of_background))
    rows[is_positive] = of_positive * weights_of(iou[is_positive].to(rows.dtype), eta)
    return cross_entropy_gradient(logits, labels, rows)


def smooth_l1_forward(
    pred: Tensor, target: Tensor, iou: Tensor, lambda_: float, beta: float, loss_weight: float,
    avg_factor: float | Tensor | None,
) -> Tensor:  # fmt: skip
    """Loss of pred, target [P, D] and iou [P]."""
    terms = smooth_l1(difference(pred, target), beta).sum(-1)
    total = (weights_of(iou.to(terms.dtype), lambda_) * terms).sum() * loss_weight
    return (total / divisor(avg_factor, total.new_full((), pred.shape[0]))).to(widest_dtype(pred, target))


def smooth_l1_backward(
    pred: Tensor, target: Tensor, iou: Tensor, upstream: Tensor, lambda_: float, beta: float, loss_weight: float,
    avg_factor: float | Tensor | None,
) -> Tensor:  # fmt: skip
    """Gradient of `pred`, in its dtype; that of `target` is its negative."""
    slopes = smooth_l1_slope(difference(pred, target), beta)
    scale = upstream.to(slopes.dtype) * loss_weight / divisor(avg_factor, slopes.new_full((), pred.shape[0]))
    return (scale * weights_of(iou.to(slopes.dtype), lambda_).unsqueeze(-1) * slopes).to(pred.dtype).contiguous()


def balance(
    of_negatives: Tensor, at_positives: Tensor, share: Tensor, avg_factor: float | Tensor | None,
    default: int | Tensor, group: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, scale [2]) of the sum of the negatives' terms, and the terms [P] of the positives and their u_i^eta."""
    dtype = of_negatives.dtype
    sums = torch.stack([
        of_negatives,
        at_positives.sum(dtype=dtype),
        (share * at_positives).sum(dtype=dtype),
        torch.as_tensor(default, dtype=dtype, device=of_negatives.device),
    ])  # fmt: skip
    of_negatives, of_positives, weighted, count = sums if group is None else distributed.total(sums, group)
    z = (of_positives / (weighted + EPS)).detach()
    by = divisor(avg_factor, count).detach()
    loss, scale = (of_negatives + z * weighted) / by, torch.stack([1 / by, z / by])
    if group is not None:
        scale *= distributed.world_size(group)
    return loss.to(at_positives.dtype), scale.to(at_positives.dtype)


def agree_on_focal(
    logits: Tensor, eta: float, weights: tuple[float, float], gamma: float, avg_factor: float | Tensor | None,
    group: str,
) -> None:  # fmt: skip
    """A ValueError on every rank of the group if one was called otherwise."""
    loss = "iou_balanced_bce_loss" if weights == (1, 1) else "iou_balanced_focal_loss"
    arguments = {"eta": eta, "alpha": weights[1], "gamma": gamma, "avg_factor": avg_factor}
    distributed.agree(loss, arguments, logits, 0, group)


def agree_on_cross_entropy(
    logits: Tensor, eta: float, background: int, avg_factor: float | Tensor | None, group: str
) -> None:
    """A ValueError on every rank of the group if one was called otherwise."""
    arguments = {"eta": eta, "background": background % logits.shape[-1], "avg_factor": avg_factor}
    distributed.agree("iou_balanced_cross_entropy_loss", arguments, logits, 0, group)


def smooth_l1_divisor(
    pred: Tensor, lambda_: float, beta: float, loss_weight: float, avg_factor: float | Tensor | None, group: str
) -> Tensor:
    """What the sum over all ranks is divided by; a ValueError on every rank if one was called otherwise."""
    arguments = {"lambda_": lambda_, "beta": beta, "loss_weight": loss_weight, "avg_factor": avg_factor}
    sizes = distributed.agree("iou_balanced_smooth_l1_loss", arguments, pred, pred.shape[0], group)
    return divisor(avg_factor, pred.new_full((), sum(sizes), dtype=accumulation_dtype(pred)))


def weights_of(iou: Tensor, exponent: float) -> Tensor:
    """u_i^exponent; an IoU that rounding left below 0 counts as 0."""
    return iou.clamp(min=0).pow(exponent).detach()

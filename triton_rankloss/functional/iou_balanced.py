"""IoU-balanced classification losses: focal, binary cross-entropy, softmax cross-entropy."""

from typing import TYPE_CHECKING

from torch import Tensor

from ..boxes import resolve_iou
from ..checks import (
    check_avg_factor,
    check_background,
    check_logits_and_targets,
    check_number,
    check_per_positive,
    check_softmax_labels,
    group_name,
    split_avg_factor,
)
from ..ops import iou_balanced as ops

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def iou_balanced_focal_loss(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor | None = None,
    *,
    pred_boxes: Tensor | None = None,
    target_boxes: Tensor | None = None,
    eta: float = 1.5,
    alpha: float = 0.25,
    gamma: float = 2.0,
    avg_factor: float | Tensor | None = None,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Sigmoid focal loss in which positives of high IoU weigh more.

    For positives i with IoU :math:`u_i` and negatives j, and :math:`p = \sigma(\mathrm{logit})`,

    .. math::
        \mathrm{loss} = \frac{1}{\mathrm{avg\_factor}} \Bigl(\sum_j l_j + Z \sum_i u_i^\eta l_i\Bigr), \quad
        Z = \frac{\sum_i l_i}{\sum_i u_i^\eta l_i + 10^{-6}}

        l_i = -\alpha (1 - p_i)^\gamma \log p_i, \quad l_j = -(1 - \alpha) p_j^\gamma \log(1 - p_j)

    Z keeps the sum over the positives what it was without the weights, which are constants in differentiation.

    Args:
        logits: scores before the sigmoid, [..., C] or [N], any floating dtype.
        targets: dense, of the shape of `logits` (> 0 positive, 0 negative, -1 ignored), or integer labels of shape
            ``logits.shape[:-1]`` (0..C-1 foreground, C background, -1 ignored).
        iou: :math:`u_i` in [0, 1], one value for every anchor (shape ``logits.shape[:-1]``, for logits [N] shape [N];
            only those of positives are read), or [P] in row-major order of the positives, which costs a host
            synchronization; a shape that could be either is read per anchor. No gradient reaches it.
        pred_boxes: in place of `iou`, predicted boxes (x1, y1, x2, y2) in either of its forms, [..., 4] or [P, 4], any
            floating dtype; one minus their :func:`box_iou_loss` is :math:`u_i`. No gradient reaches them.
        target_boxes: the boxes they are compared with, of the same shape.
        eta: how much IoU counts; 0 is the plain focal loss.
        alpha: weight of the positives; of the negatives it is 1 - alpha.
        gamma: focusing exponent, >= 0.
        avg_factor: what the sum is divided by, a number or a tensor without dimensions, > 0 (the value of a tensor is
            not checked). Default: the number of positives, at least 1.
        group: torch.distributed process group over whose global batch every sum is taken, and the number of positives
            counted; a given `avg_factor` divides the sum over all ranks, and must be the same on each. Every rank
            takes part with what it has, and gets the loss of the group; gradients are multiplied by the number of
            ranks, so that their mean (DistributedDataParallel) is the gradient of that loss. Costs one wait for the
            host.

    Returns:
        A scalar: float64 for float64 logits, else float32. Without positives the negatives' part alone.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    Positives whose IoU are all 0 contribute nothing. An infinite logit counts as a large finite one: 1e30, or the
    largest that the dtype can hold. A NaN among the candidates makes the loss NaN.

    Source: Wu et al., arXiv 1908.05641, IoU-balanced classification loss, on the focal loss of Lin et al., ICCV 2017,
    arXiv 1708.02002. Values are those of the published code, which makes one-hot tensors of the size of the logits.
    """
    iou = _classification_iou(logits, targets, iou, pred_boxes, target_boxes)
    check_focal_parameters(eta, alpha, gamma)
    check_avg_factor(avg_factor, logits)
    weights = 1.0 - alpha, float(alpha)
    factors = split_avg_factor(avg_factor)
    return ops.focal_loss(logits, targets, iou, eta, *weights, gamma, *factors, group_name(group))[0]


def iou_balanced_bce_loss(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor | None = None,
    *,
    pred_boxes: Tensor | None = None,
    target_boxes: Tensor | None = None,
    eta: float = 1.5,
    avg_factor: float | Tensor | None = None,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Binary cross-entropy in which positives of high IoU weigh more.

    :func:`iou_balanced_focal_loss` with the terms :math:`l_i = -\log p_i` and :math:`l_j = -\log(1 - p_j)`; arguments,
    result, errors and edge cases are the same.

    Source: Wu et al., arXiv 1908.05641, IoU-balanced classification loss. The published code mis-indexes the positives
    in this form; this follows the paper.
    """
    iou = _classification_iou(logits, targets, iou, pred_boxes, target_boxes)
    check_number("eta", eta, 0)
    check_avg_factor(avg_factor, logits)
    factors = split_avg_factor(avg_factor)
    return ops.focal_loss(logits, targets, iou, eta, 1.0, 1.0, 0.0, *factors, group_name(group))[0]


def iou_balanced_cross_entropy_loss(
    logits: Tensor,
    labels: Tensor,
    iou: Tensor | None = None,
    *,
    pred_boxes: Tensor | None = None,
    target_boxes: Tensor | None = None,
    eta: float = 1.5,
    background: int = -1,
    avg_factor: float | Tensor | None = None,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Softmax cross-entropy in which foreground samples of high IoU weigh more.

    .. math::
        \mathrm{loss} = \frac{1}{\mathrm{avg\_factor}} \Bigl(\sum_j l_j + Z \sum_i u_i^\eta l_i\Bigr), \quad
        Z = \frac{\sum_i l_i}{\sum_i u_i^\eta l_i + 10^{-6}}, \quad l = -\log \mathrm{softmax}(x)_\mathrm{label}

    over foreground samples i with IoU :math:`u_i` and background samples j; the weights are constants in
    differentiation.

    Args:
        logits: x, [..., K], one channel for each class and one for the background, any floating dtype.
        labels: integers of shape ``logits.shape[:-1]``, the channel of each sample; any label below 0 is ignored. A
            label of K or more makes the loss NaN.
        iou: :math:`u_i` in [0, 1], one value for every sample (shape ``logits.shape[:-1]``; only those of foreground
            samples are read), or [P] in row-major order of the foreground samples, which costs a host
            synchronization. No gradient reaches it.
        pred_boxes: in place of `iou`, predicted boxes (x1, y1, x2, y2) in either of its forms, [..., 4] or [P, 4], any
            floating dtype; one minus their :func:`box_iou_loss` is :math:`u_i`. No gradient reaches them.
        target_boxes: the boxes they are compared with, of the same shape.
        eta: how much IoU counts; 0 is the plain cross-entropy.
        background: the background's channel, counted from the end if below 0: -1 is the last one. It names a channel,
            not a label: label -1 is ignored whatever it is.
        avg_factor: what the sum is divided by, a number or a tensor without dimensions, > 0 (the value of a tensor is
            not checked). Default: the number of samples that are not ignored, at least 1.
        group: torch.distributed process group over whose global batch every sum is taken, and the samples counted; a
            given `avg_factor` divides the sum over all ranks, and must be the same on each. Every rank takes part with
            what it has, and gets the loss of the group; gradients are multiplied by the number of ranks, so that their
            mean (DistributedDataParallel) is the gradient of that loss. Costs one wait for the host.

    Returns:
        A scalar: float64 for float64 logits, else float32. Without foreground the background's part alone.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    Foreground samples whose IoU are all 0 contribute nothing. An infinite logit counts as a large finite one: 1e30, or
    the largest that the dtype can hold. A NaN in a sample that is not ignored makes the loss NaN.

    Source: Wu et al., arXiv 1908.05641, IoU-balanced classification loss. Values are those of the published code, whose
    background is channel 0.
    """
    check_softmax_labels(logits, labels, background)
    iou, name = resolve_iou(iou, pred_boxes, target_boxes, logits)
    _check_shape(name, iou, logits)
    check_cross_entropy_parameters(eta, background)
    check_avg_factor(avg_factor, logits)
    if iou.shape != labels.shape:
        iou = ops.spread(iou, (labels >= 0) & (labels != background % logits.shape[-1]), name)
    factors = split_avg_factor(avg_factor)
    return ops.cross_entropy_loss(logits, labels, iou, eta, background, *factors, group_name(group))[0]


def check_focal_parameters(eta: float, alpha: float, gamma: float) -> None:
    """Errors that name the argument."""
    check_number("eta", eta, 0)
    check_number("alpha", alpha, 0, 1)
    check_number("gamma", gamma, 0)


def check_cross_entropy_parameters(eta: float, background: int) -> None:
    """Errors that name the argument."""
    check_number("eta", eta, 0)
    check_background(background)


def _classification_iou(
    logits: Tensor, targets: Tensor, iou: Tensor | None, pred_boxes: Tensor | None, target_boxes: Tensor | None
) -> Tensor:
    """IoU per anchor, or of the shape of the logits: a form from which every candidate can read its own."""
    check_logits_and_targets(logits, targets)
    iou, name = resolve_iou(iou, pred_boxes, target_boxes, logits)
    check_per_positive(name, iou, logits, per_anchor=True)
    if iou.shape == logits.shape[:-1] or (iou.shape == logits.shape and targets.shape == logits.shape):
        return iou
    if targets.shape == logits.shape:
        return ops.spread(iou, targets > 0, name)
    return ops.spread(iou, (targets >= 0) & (targets < logits.shape[-1]), name)


def _check_shape(name: str, iou: Tensor, logits: Tensor) -> None:
    if iou.dim() != 1 and iou.shape != logits.shape[:-1]:
        raise ValueError(
            f"{name} must have shape [P] or {tuple(logits.shape[:-1])}, P the number of foreground samples; got "
            f"{tuple(iou.shape)}"
        )

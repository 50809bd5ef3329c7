"""Harmonic losses: of single positives, of boxes, and the task-contrastive loss."""

from torch import Tensor

from ..checks import (
    check_background,
    check_bool,
    check_boxes,
    check_choice,
    check_float_tensor,
    check_logits_and_targets,
    check_number,
    check_per_positive,
    check_softmax_labels,
)
from ..ops import boxes as box_ops, harmonic as ops
from .boxes import check_parameters as check_box_parameters, reduce


def harmonic_loss(
    classification_losses: Tensor, localization_losses: Tensor, *, detach_factors: bool = False
) -> Tensor:
    r"""Classification and localization loss of each positive, each weighted by how well the other task does.

    .. math:: h_i = (1 + e^{-l_i}) c_i + (1 + e^{-c_i}) l_i

    Args:
        classification_losses: :math:`c_i` >= 0, [P] (or any shape), any floating dtype.
        localization_losses: :math:`l_i` >= 0, of the same shape.
        detach_factors: treat the factors :math:`1 + e^{-l_i}` and :math:`1 + e^{-c_i}` as constants in differentiation.
            Otherwise the gradient of :math:`c_i` is :math:`1 + e^{-l_i} - l_i e^{-c_i}`: larger where the box is good,
            and below 0 for a box so bad (:math:`l_i` > 1) that its score should not rise yet.

    Returns:
        :math:`h_i`, of the shape of the arguments: float64 if either is, else float32.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    NaN in, NaN out.

    Source: Wang and Zhang, ICCV 2021, arXiv 2108.10809, harmonic loss. There is no published code.
    """
    check_float_tensor("classification_losses", classification_losses)
    check_float_tensor("localization_losses", localization_losses, like=classification_losses)
    if localization_losses.shape != classification_losses.shape:
        raise ValueError(
            f"localization_losses must have the shape of classification_losses, {tuple(classification_losses.shape)}; "
            f"got {tuple(localization_losses.shape)}"
        )
    check_bool("detach_factors", detach_factors)
    return ops.harmonic_loss(classification_losses, localization_losses, detach_factors)


def harmonic_iou_loss(
    pred_boxes: Tensor, target_boxes: Tensor, *, gamma: float = 0.8, reduction: str = "none", eps: float = 1e-7
) -> Tensor:
    r"""One minus the IoU, with a larger weight for boxes of higher IoU.

    .. math:: (1 + \mathrm{IoU})^\gamma (1 - \mathrm{IoU}), \quad \mathrm{IoU} = I / (U + \mathrm{eps})

    Args:
        pred_boxes: (x1, y1, x2, y2), [..., 4], any floating dtype, any unit that both share.
        target_boxes: the boxes they are compared with, of the same shape; the loss is symmetric.
        gamma: how much the weight rises, in [0, 1]; 0 is the IoU loss. Beyond 1 a better box of low IoU would cost
            more.
        reduction: "none", "mean" or "sum".
        eps: added to the denominator, in squared units of the boxes.

    Returns:
        [...], or with a reduction a scalar: float64 if either input is, else float32. The mean of no boxes is 0,
        still connected to the graph.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    Edge cases are those of :func:`box_iou_loss`.

    Source: Wang and Zhang, ICCV 2021, arXiv 2108.10809, harmonic IoU loss. There is no published code.
    """
    check_boxes("pred_boxes", pred_boxes)
    check_boxes("target_boxes", target_boxes, like=pred_boxes, shape=pred_boxes.shape)
    check_iou_parameters(gamma, reduction, eps)
    return reduce(box_ops.box_loss(pred_boxes, target_boxes, "harmonic", gamma, eps), reduction)


def task_contrastive_loss(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor,
    *,
    margin: float = 0.2,
    activation: str = "sigmoid",
    background: int = -1,
    reduction: str = "none",
) -> Tensor:
    r"""Distance between the score of a positive and its IoU, beyond a margin, less for uncertain predictions.

    .. math:: t_i = \frac{\max(0, |p_i - u_i| - \mathrm{margin})}{1 + e^{H_i}}

    with :math:`p_i` the probability of the positive's class, :math:`u_i` its IoU, and :math:`H_i` the entropy of the
    prediction at its anchor: of the distribution over the channels for softmax, and for sigmoid, whose channels are
    independent yes-or-no answers, the sum of their binary entropies. Everything is differentiated, H as well.

    Args:
        logits: scores, [..., C] or [N], any floating dtype.
        targets: dense, of the shape of `logits` (> 0 positive, 0 negative, -1 ignored), or integer labels of shape
            ``logits.shape[:-1]`` (0..C-1 foreground, C background, -1 ignored). For softmax: labels, the channel of
            each sample, below 0 ignored, beyond the last channel read as the last.
        iou: :math:`u_i`, [P] in row-major order of the positives, or one value for every anchor (shape
            ``logits.shape[:-1]``, for logits [N] shape [N]; a shape that could be either is read per anchor). Gradient
            reaches it; detach it to move the scores alone.
        margin: the distance that costs nothing, in [0, 1].
        activation: "sigmoid" or "softmax".
        background: for softmax, the background's channel, counted from the end if below 0.
        reduction: "none", "mean" or "sum".

    Returns:
        [P] in row-major order of the positives, or with a reduction a scalar: float64 if `logits` or `iou` is, else
        float32. Without positives [0], mean and sum 0, still connected to the graph.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    An infinite logit counts as a large finite one: 1e30, or the largest that the dtype can hold. Only anchors with a
    positive are read. Costs a host synchronization.

    Source: Wang and Zhang, ICCV 2021, arXiv 2108.10809, task-contrastive loss. There is no published code.
    """
    check_task_contrastive_parameters(margin, activation, background, reduction)
    if activation == "softmax":
        check_softmax_labels(logits, targets, background, "targets")
    else:
        check_logits_and_targets(logits, targets)
    check_per_positive("iou", iou, logits, per_anchor=True)
    positions = ops.positive_positions(logits, targets, background if activation == "softmax" else None)
    anchors_shape, num_channels = (logits.shape[:-1], logits.shape[-1]) if logits.dim() > 1 else (logits.shape, 1)
    if iou.shape == anchors_shape:
        iou = iou.reshape(-1)[positions // max(1, num_channels)]
    return reduce(ops.task_contrastive_loss(logits, positions, iou, margin, activation), reduction)


def check_iou_parameters(gamma: float, reduction: str, eps: float) -> None:
    """Errors that name the argument."""
    check_number("gamma", gamma, 0, 1)
    check_box_parameters(reduction, eps)


def check_task_contrastive_parameters(margin: float, activation: str, background: int, reduction: str) -> None:
    """Errors that name the argument."""
    check_number("margin", margin, 0, 1)
    check_choice("activation", activation, ("sigmoid", "softmax"))
    check_background(background)
    check_choice("reduction", reduction, ("none", "mean", "sum"))

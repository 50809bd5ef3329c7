"""Harmonic loss of a whole detection head."""

from torch import Tensor

from ..checks import (
    check_avg_factor,
    check_background,
    check_bool,
    check_boxes,
    check_choice,
    check_float_tensor,
    check_logits_and_targets,
    check_number,
    check_softmax_labels,
)
from ..ops import boxes as box_ops, harmonic as positive_ops, harmonic_detection as ops


def harmonic_detection_loss(
    logits: Tensor,
    targets: Tensor,
    pred_boxes: Tensor,
    target_boxes: Tensor,
    *,
    pred_deltas: Tensor | None = None,
    target_deltas: Tensor | None = None,
    classification: str = "bce",
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    background: int = -1,
    beta: float = 1.0,
    iou_weight: float = 1.5,
    iou_gamma: float = 0.8,
    detach_factors: bool = False,
    task_contrastive_weight: float = 0.0,
    task_contrastive_margin: float = 0.2,
    avg_factor: float | Tensor | None = None,
    eps: float = 1e-7,
) -> Tensor:
    r"""The harmonic loss of a whole detection head: its classification and its localization, in one.

    For positives i with classification loss :math:`c_i` and localization loss :math:`l_i`, and negatives j,

    .. math::
        \mathrm{loss} = \frac{1}{\mathrm{avg\_factor}} \Bigl(
            \sum_i \bigl((1 + e^{-l_i}) c_i + (1 + e^{-c_i}) l_i + w_t t_i\bigr) + \sum_j c_j \Bigr)

        l_i = \sum_c \mathrm{smooth}_\beta(\delta_{ic})
            + w_\mathrm{iou} (1 + \mathrm{IoU}_i)^\gamma (1 - \mathrm{IoU}_i)

    with :math:`\delta = ` `pred_deltas` - `target_deltas` and :math:`t_i` the term of :func:`task_contrastive_loss`.

    Args:
        logits: scores, [..., C] or [N], any floating dtype.
        targets: dense, of the shape of `logits` (> 0 positive, 0 negative, -1 ignored), or integer labels of shape
            ``logits.shape[:-1]`` (0..C-1 foreground, C background, -1 ignored). For softmax: labels, the channel of
            each sample, below 0 ignored.
        pred_boxes: decoded boxes (x1, y1, x2, y2) of the positives, [P, 4], in row-major order of the positives.
        target_boxes: the boxes they should be, [P, 4]. No gradient reaches them.
        pred_deltas: box offsets as the head regresses them, [P, D], in the same order; usually the same predictions
            as `pred_boxes` before decoding. Without them :math:`l_i` is its IoU part alone.
        target_deltas: the offsets to reach, [P, D]. No gradient reaches them.
        classification: "bce" and "focal" take every logit by itself through a sigmoid: a positive anchor is positive
            in one channel and negative in the others. "softmax" takes samples, over C classes and background. With
            "bce" the easy negatives of a dense head outweigh everything else; take "focal" there.
        focal_alpha: for "focal", the weight of positives, in [0, 1]; of negatives it is 1 - focal_alpha.
        focal_gamma: for "focal", the focusing exponent, >= 0.
        background: for "softmax", the background's channel, counted from the end if below 0.
        beta: where smooth L1 becomes a line, in units of the offsets; 0 is the L1 loss.
        iou_weight: :math:`w_\mathrm{iou}`, >= 0.
        iou_gamma: :math:`\gamma`, in [0, 1].
        detach_factors: treat the harmonic factors as constants in differentiation.
        task_contrastive_weight: :math:`w_t`, >= 0; the IoU in the term is that of `pred_boxes`, differentiated too.
        task_contrastive_margin: the margin of that term, in [0, 1].
        avg_factor: what the sum is divided by, a number or a tensor without dimensions, > 0 (the value of a tensor is
            not checked). Default: the number of positives, for "softmax" of samples that are not ignored, at least 1.
        eps: of the IoU, in squared units of the boxes.

    Returns:
        A scalar: float64 for float64 logits, else float32. Without positives the negatives' part alone.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    An infinite logit counts as a large finite one: 1e30, or the largest that the dtype can hold. A NaN among the
    candidates makes the loss NaN, and so does, for softmax, a label beyond the last channel. Costs a host
    synchronization.

    Source: Wang and Zhang, ICCV 2021, arXiv 2108.10809, harmonic loss, harmonic IoU loss and task-contrastive loss;
    the paper's classification is the softmax form. There is no published code.
    """
    check_parameters(
        classification, focal_alpha, focal_gamma, background, beta, iou_weight, iou_gamma, detach_factors,
        task_contrastive_weight, task_contrastive_margin, eps,
    )  # fmt: skip
    is_softmax = classification == "softmax"
    if is_softmax:
        check_softmax_labels(logits, targets, background, "targets")
    else:
        check_logits_and_targets(logits, targets)
    _check_positives(logits, pred_boxes, target_boxes, pred_deltas, target_deltas)
    check_avg_factor(avg_factor, logits)

    target_boxes = target_boxes.detach()
    target_deltas = None if target_deltas is None else target_deltas.detach()
    number, tensor = (None, avg_factor.detach()) if isinstance(avg_factor, Tensor) else (avg_factor, None)
    activation = "softmax" if is_softmax else "sigmoid"
    weights = (1.0 - focal_alpha, float(focal_alpha), focal_gamma) if classification == "focal" else (1.0, 1.0, 0.0)
    positions = positive_ops.positive_positions(logits, targets, background if is_softmax else None)
    localization = ops.localization_loss(
        pred_boxes, target_boxes, pred_deltas, target_deltas, beta, iou_weight, iou_gamma, eps
    )
    loss, scale, _ = ops.detection_loss(
        logits, targets, positions, localization, activation, background, *weights, detach_factors, number, tensor
    )
    if task_contrastive_weight > 0:
        iou = 1 - box_ops.box_loss(pred_boxes, target_boxes, "iou", 0.0, eps)
        terms = positive_ops.task_contrastive_loss(logits, positions, iou, task_contrastive_margin, activation)
        loss = loss + (task_contrastive_weight * scale * terms.sum()).to(loss.dtype)
    return loss


def check_parameters(
    classification: str, focal_alpha: float, focal_gamma: float, background: int, beta: float, iou_weight: float,
    iou_gamma: float, detach_factors: bool, task_contrastive_weight: float, task_contrastive_margin: float, eps: float,
) -> None:  # fmt: skip
    """Errors that name the argument."""
    check_choice("classification", classification, ("bce", "focal", "softmax"))
    check_number("focal_alpha", focal_alpha, 0, 1)
    check_number("focal_gamma", focal_gamma, 0)
    check_background(background)
    check_number("beta", beta, 0)
    check_number("iou_weight", iou_weight, 0)
    check_number("iou_gamma", iou_gamma, 0, 1)
    check_bool("detach_factors", detach_factors)
    check_number("task_contrastive_weight", task_contrastive_weight, 0)
    check_number("task_contrastive_margin", task_contrastive_margin, 0, 1)
    check_number("eps", eps, 0)


def _check_positives(
    logits: Tensor, pred_boxes: Tensor, target_boxes: Tensor, pred_deltas: Tensor | None, target_deltas: Tensor | None
) -> None:
    check_boxes("pred_boxes", pred_boxes, like=logits)
    if pred_boxes.dim() != 2:
        raise ValueError(f"pred_boxes must have shape [P, 4]; got {tuple(pred_boxes.shape)}")
    check_boxes("target_boxes", target_boxes, like=logits, shape=pred_boxes.shape)
    if (pred_deltas is None) != (target_deltas is None):
        missing = "pred_deltas" if pred_deltas is None else "target_deltas"
        raise ValueError(f"{missing} must be given too: smooth L1 needs both pred_deltas and target_deltas; got None")
    if pred_deltas is None or target_deltas is None:
        return
    check_float_tensor("pred_deltas", pred_deltas, like=logits)
    check_float_tensor("target_deltas", target_deltas, like=logits)
    if pred_deltas.dim() != 2 or pred_deltas.shape[0] != pred_boxes.shape[0]:
        raise ValueError(f"pred_deltas must have shape ({pred_boxes.shape[0]}, D); got {tuple(pred_deltas.shape)}")
    if target_deltas.shape != pred_deltas.shape:
        raise ValueError(
            f"target_deltas must have the shape of pred_deltas, {tuple(pred_deltas.shape)}; got "
            f"{tuple(target_deltas.shape)}"
        )

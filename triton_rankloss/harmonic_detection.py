"""Harmonic loss of a whole detection head."""

import math
from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .boxes import box_iou
from .checks import (
    check_avg_factor,
    check_background,
    check_bool,
    check_boxes,
    check_choice,
    check_float_tensor,
    check_logits_and_targets,
    check_number,
    check_softmax_labels,
    split_avg_factor,
)
from .dtypes import accumulation_dtype, clamp_infinities, result_dtype
from .focal import focal_gradient, sum_of_negatives
from .harmonic import localization_losses
from .iou_balanced_cross_entropy import cross_entropies, cross_entropy_gradient
from .module import LossModule
from .reference import harmonic as reference
from .targets import as_anchors, background_flags, positive_positions, select, softmax_classes
from .task_contrastive import add_gradients_of_rows, terms_of_rows


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
    _check_parameters(
        classification,
        background,
        detach_factors,
        focal_alpha=focal_alpha,
        focal_gamma=focal_gamma,
        beta=beta,
        iou_weight=iou_weight,
        iou_gamma=iou_gamma,
        task_contrastive_weight=task_contrastive_weight,
        task_contrastive_margin=task_contrastive_margin,
        eps=eps,
    )
    is_softmax = classification == "softmax"
    if is_softmax:
        check_softmax_labels(logits, targets, background, "targets")
    else:
        check_logits_and_targets(logits, targets)
    logits, targets = as_anchors(logits, targets)
    _check_positives(logits, pred_boxes, target_boxes, pred_deltas, target_deltas)
    check_avg_factor(avg_factor, logits)

    if task_contrastive_weight > 0:  # two terms move the boxes too
        pred_boxes = pred_boxes.to(result_dtype(pred_boxes))
    target_boxes = target_boxes.detach()
    target_deltas = None if target_deltas is None else target_deltas.detach()
    activation = "softmax" if is_softmax else "sigmoid"
    weights = (1.0 - focal_alpha, float(focal_alpha), focal_gamma) if classification == "focal" else (1.0, 1.0, 0.0)
    positions = positive_positions(logits, targets, background if is_softmax else None)
    localization = localization_losses(
        pred_boxes, target_boxes, pred_deltas, target_deltas, beta, iou_weight, iou_gamma, eps
    )
    iou = box_iou(pred_boxes, target_boxes, eps) if task_contrastive_weight > 0 else None
    return _detection_loss(
        logits,
        targets,
        positions,
        localization,
        iou,
        activation,
        background,
        *weights,
        task_contrastive_margin,
        task_contrastive_weight,
        detach_factors,
        *split_avg_factor(avg_factor),
    )[0]


class HarmonicDetectionLoss(LossModule):
    """See :func:`triton_rankloss.harmonic_detection_loss`."""

    def __init__(
        self,
        *,
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
        eps: float = 1e-7,
    ) -> None:
        super().__init__(
            classification=classification,
            focal_alpha=focal_alpha,
            focal_gamma=focal_gamma,
            background=background,
            beta=beta,
            iou_weight=iou_weight,
            iou_gamma=iou_gamma,
            detach_factors=detach_factors,
            task_contrastive_weight=task_contrastive_weight,
            task_contrastive_margin=task_contrastive_margin,
            eps=eps,
        )
        _check_parameters(**self.options())

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        pred_boxes: Tensor,
        target_boxes: Tensor,
        pred_deltas: Tensor | None = None,
        target_deltas: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar."""
        return harmonic_detection_loss(
            logits,
            targets,
            pred_boxes,
            target_boxes,
            pred_deltas=pred_deltas,
            target_deltas=target_deltas,
            avg_factor=avg_factor,
            **self.options(),
        )


def _check_parameters(classification: str, background: int, detach_factors: bool, **numbers: float) -> None:
    check_choice("classification", classification, ("bce", "focal", "softmax"))
    check_background(background)
    check_bool("detach_factors", detach_factors)
    for name, value in numbers.items():
        check_number(name, value, 0, 1 if name in ("focal_alpha", "iou_gamma", "task_contrastive_margin") else math.inf)


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


def _flags(logits: Tensor, activation: str) -> Tensor:
    """Background flags; none for softmax, which takes rows."""
    return background_flags(logits if activation == "sigmoid" else logits[:0])


def _check_localization(localization: Tensor, positions: Tensor) -> None:
    if localization.shape != positions.shape:
        raise ValueError(
            f"pred_boxes must hold one box for each of the {positions.numel()} positives; got {localization.numel()}"
        )


@torch.library.custom_op("triton_rankloss::harmonic_detection_loss", mutates_args=())
def _detection_loss(
    logits: Tensor,
    targets: Tensor,
    positions: Tensor,
    localization: Tensor,
    iou: Tensor | None,
    activation: str,
    background: int,
    negative_weight: float,
    positive_weight: float,
    gamma: float,
    margin: float,
    task_weight: float,
    detach_factors: bool,
    avg_number: float | None,
    avg_tensor: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, scale [], weights [2, P], background flags), from the localization losses l_i [P] of the positives.

    With `iou` [P] the loss has the task-contrastive terms t_i, times `task_weight`; margin is theirs.

    The activation is "sigmoid", of focal terms with class weights, or "softmax", which reads `background` alone.
    Backward needs scale = 1 / avg_factor, the gradient of c_j, and weights = scale (dh/dc_i, dh/dl_i).
    """
    _check_localization(localization, positions)
    dtype = accumulation_dtype(logits)
    if activation == "softmax":
        terms = cross_entropies(logits, targets).to(dtype)
        c_negatives = terms[softmax_classes(logits, targets, background)[0]]
        c = terms.view(-1)[positions // logits.shape[-1]]
    else:
        c_negatives = negative_weight * sum_of_negatives(logits, targets, gamma)
        c = positive_weight * reference.focal(select(logits, positions), gamma).to(dtype)
    localization = localization.to(dtype)
    if avg_tensor is not None:
        avg_factor = avg_tensor.to(dtype)
    elif avg_number is not None:
        avg_factor = c.new_full((), avg_number)
    else:
        num_samples = (targets >= 0).sum() if activation == "softmax" else c.new_full((), len(c))
        avg_factor = num_samples.clamp(min=1).to(dtype)
    loss = reference.harmonic_detection_loss(c, c_negatives, localization, avg_factor, detach_factors)
    if iou is not None:
        loss += task_weight * terms_of_rows(logits, positions, iou, margin, activation).sum() / avg_factor
    slopes = dispatch.gradients(
        lambda c, loc: reference.harmonic_loss(c, loc, detach_factors), [c, localization], torch.ones_like(c)
    )
    results = loss, 1 / avg_factor, torch.stack(slopes) / avg_factor
    return *(result.to(result_dtype(logits)) for result in results), _flags(logits, activation).zero_()  # type: ignore[return-value]


@_detection_loss.register_fake
def _(
    logits: Tensor,
    targets: Tensor,
    positions: Tensor,
    localization: Tensor,
    iou: Tensor | None,
    activation: str,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scalar = logits.new_empty((), dtype=result_dtype(logits))
    weights = scalar.new_empty((2, localization.shape[0]))
    return scalar, torch.empty_like(scalar), weights, _flags(logits, activation)


@dispatch.kernel(_detection_loss)
def _(
    logits: Tensor, targets: Tensor, positions: Tensor, localization: Tensor, *parameters: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from .kernels.pointwise import harmonic_detection

    _check_localization(localization, positions)
    return harmonic_detection.forward(logits, targets, positions, localization, *parameters)


@torch.library.custom_op("triton_rankloss::harmonic_detection_loss_backward", mutates_args=())
def _detection_loss_backward(
    logits: Tensor,
    targets: Tensor,
    positions: Tensor,
    iou: Tensor | None,
    scale: Tensor,
    weights: Tensor,
    flags: Tensor,
    upstream: Tensor,
    activation: str,
    background: int,
    negative_weight: float,
    positive_weight: float,
    gamma: float,
    margin: float,
    task_weight: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits and of `iou`: those of scale sum_j c_j + sum_i (weights_i c_i + task_weight scale t_i).

    `weights` [P] are those of the c_i. Without `iou` its gradient is empty.
    """
    x = logits if iou is None else clamp_infinities(logits)  # the gradient of both terms is rounded once
    of_negatives, of_positives = scale * upstream, weights * upstream
    if activation == "softmax":
        is_negative, _ = softmax_classes(logits, targets.reshape(-1), background)
        factors = torch.where(is_negative, of_negatives, 0)
        factors[positions // logits.shape[-1]] = of_positives
        gradient = cross_entropy_gradient(x, targets, factors)
    else:
        weight_of_negatives, weight_of_positives = negative_weight * of_negatives, positive_weight * of_positives
        gradient = focal_gradient(x, targets, positions, weight_of_negatives, weight_of_positives, gamma)
    if iou is None:
        return gradient, logits.new_empty(0)
    of_terms = (task_weight * scale * upstream).expand(iou.shape)
    grad_iou = add_gradients_of_rows(gradient, logits, positions, iou, of_terms, margin, activation)
    return gradient.to(logits.dtype), grad_iou


@_detection_loss_backward.register_fake
def _(logits: Tensor, targets: Tensor, positions: Tensor, iou: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    return dispatch.fake_gradient(logits), logits.new_empty(0) if iou is None else dispatch.fake_gradient(iou)


dispatch.once_differentiable(_detection_loss_backward)


@dispatch.kernel(_detection_loss_backward)
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    from .kernels.pointwise import harmonic_detection

    return harmonic_detection.backward(*arguments)


def _detection_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, positions, localization, iou, *parameters = inputs
    dispatch.save(ctx, (logits, targets, positions, iou, *output[1:]), parameters[:7])
    ctx.mark_non_differentiable(*output[1:])
    ctx.localization_dtype = localization.dtype


def _detection_backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    grad_logits = grad_localization = grad_iou = None
    if upstream is not None:
        logits, targets, positions, iou, scale, weights, flags = ctx.saved_tensors
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[4]:
            grad_logits, grad_iou = _detection_loss_backward(
                logits, targets, positions, iou, scale, weights[0], flags, upstream, *ctx.parameters
            )
        if ctx.needs_input_grad[3]:
            grad_localization = (weights[1] * upstream).to(ctx.localization_dtype)
    return grad_logits, None, None, grad_localization, None if iou is None else grad_iou, *[None] * 10


_detection_loss.register_autograd(_detection_backward, setup_context=_detection_context)

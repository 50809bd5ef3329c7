"""Harmonic loss of single positives, harmonic IoU loss of boxes, and the localization loss of harmonic detection."""

from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .boxes import box_losses, check_reduction, reduce_losses
from .checks import check_bool, check_boxes, check_float_tensor, check_number
from .dtypes import result_dtype
from .module import LossModule
from .reference import harmonic as reference


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
            and below 0 for a box so bad (:math:`l_i` > 1.28, or more for a larger :math:`c_i`) that its score should
            not rise yet.

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
    return _harmonic_loss(classification_losses, localization_losses, detach_factors)


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
    _check_iou_parameters(gamma, reduction, eps)
    return reduce_losses(box_losses(pred_boxes, target_boxes, "harmonic", gamma, eps), reduction)


class HarmonicLoss(LossModule):
    """See :func:`triton_rankloss.harmonic_loss`."""

    def __init__(self, *, detach_factors: bool = False) -> None:
        check_bool("detach_factors", detach_factors)
        super().__init__(detach_factors=detach_factors)

    def forward(self, classification_losses: Tensor, localization_losses: Tensor) -> Tensor:
        """The loss of each positive."""
        return harmonic_loss(classification_losses, localization_losses, **self.options())


class HarmonicIoULoss(LossModule):
    """See :func:`triton_rankloss.harmonic_iou_loss`."""

    def __init__(self, *, gamma: float = 0.8, reduction: str = "none", eps: float = 1e-7) -> None:
        _check_iou_parameters(gamma, reduction, eps)
        super().__init__(gamma=gamma, reduction=reduction, eps=eps)

    def forward(self, pred_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Loss of boxes [..., 4] in pairs."""
        return harmonic_iou_loss(pred_boxes, target_boxes, **self.options())


def _check_iou_parameters(gamma: float, reduction: str, eps: float) -> None:
    check_number("gamma", gamma, 0, 1)
    check_reduction(reduction, eps)


@torch.library.custom_op("triton_rankloss::harmonic_loss", mutates_args=())
def _harmonic_loss(classification: Tensor, localization: Tensor, detach_factors: bool) -> Tensor:
    """(1 + exp(-l)) c + (1 + exp(-c)) l, of the shape of both."""
    return _formula(classification, localization, detach_factors).contiguous()


@_harmonic_loss.register_fake
def _(classification: Tensor, localization: Tensor, *_: Any) -> Tensor:
    return classification.new_empty(classification.shape, dtype=result_dtype(classification, localization))


@dispatch.kernel(_harmonic_loss)
def _(*arguments: Any) -> Tensor:
    from .kernels.pointwise import harmonic

    return harmonic.harmonic_loss(*arguments)


@torch.library.custom_op("triton_rankloss::harmonic_loss_backward", mutates_args=())
def _harmonic_loss_backward(
    classification: Tensor, localization: Tensor, upstream: Tensor, detach_factors: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of both."""
    of_c, of_l = dispatch.gradients(
        lambda c, loc: _formula(c, loc, detach_factors), [classification, localization], upstream
    )
    return of_c, of_l


@_harmonic_loss_backward.register_fake
def _(classification: Tensor, localization: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return dispatch.fake_gradient(classification), dispatch.fake_gradient(localization)


dispatch.once_differentiable(_harmonic_loss_backward)


@dispatch.kernel(_harmonic_loss_backward)
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    from .kernels.pointwise import harmonic

    return harmonic.harmonic_loss_backward(*arguments)


def _formula(classification: Tensor, localization: Tensor, detach_factors: bool) -> Tensor:
    dtype = result_dtype(classification, localization)
    return reference.harmonic_loss(classification.to(dtype), localization.to(dtype), detach_factors)


def _harmonic_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dispatch.save(ctx, inputs[:2], inputs[2:])


def _harmonic_backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return None, None, None
    return *_harmonic_loss_backward(*ctx.saved_tensors, upstream, *ctx.parameters), None


_harmonic_loss.register_autograd(_harmonic_backward, setup_context=_harmonic_context)


@torch.library.custom_op("triton_rankloss::harmonic_localization_loss", mutates_args=())
def localization_losses(
    pred_boxes: Tensor,
    target_boxes: Tensor,
    pred_deltas: Tensor | None,
    target_deltas: Tensor | None,
    beta: float,
    iou_weight: float,
    gamma: float,
    eps: float,
) -> Tensor:
    """smooth_l1(deltas) + iou_weight harmonic_iou(boxes) of boxes [P, 4] and deltas [P, D]: [P]."""
    tensors = pred_boxes, target_boxes, pred_deltas, target_deltas
    return _localization_formula(*tensors, beta, iou_weight, gamma, eps).contiguous()


@localization_losses.register_fake
def _(
    pred_boxes: Tensor, target_boxes: Tensor, pred_deltas: Tensor | None, target_deltas: Tensor | None, *_: Any
) -> Tensor:
    dtype = result_dtype(pred_boxes, target_boxes, pred_deltas, target_deltas)
    return pred_boxes.new_empty(pred_boxes.shape[:-1], dtype=dtype)


@dispatch.kernel(localization_losses)
def _(*arguments: Any) -> Tensor:
    from .kernels.pointwise import localization

    return localization.localization_loss(*arguments)


@torch.library.custom_op("triton_rankloss::harmonic_localization_loss_backward", mutates_args=())
def _localization_loss_backward(
    pred_boxes: Tensor,
    target_boxes: Tensor,
    pred_deltas: Tensor | None,
    target_deltas: Tensor | None,
    upstream: Tensor,
    beta: float,
    iou_weight: float,
    gamma: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of `pred_boxes` and of `pred_deltas`, the second empty without deltas; targets get none."""

    def formula(pred_boxes: Tensor, pred_deltas: Tensor | None = None) -> Tensor:
        tensors = pred_boxes, target_boxes, pred_deltas, target_deltas
        return _localization_formula(*tensors, beta, iou_weight, gamma, eps)

    if pred_deltas is None:
        (grad_boxes,) = dispatch.gradients(formula, [pred_boxes], upstream)
        return grad_boxes, pred_boxes.new_empty(0)
    grad_boxes, grad_deltas = dispatch.gradients(formula, [pred_boxes, pred_deltas], upstream)
    return grad_boxes, grad_deltas


@_localization_loss_backward.register_fake
def _(pred_boxes: Tensor, target_boxes: Tensor, pred_deltas: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
    grad_deltas = pred_boxes.new_empty(0) if pred_deltas is None else dispatch.fake_gradient(pred_deltas)
    return dispatch.fake_gradient(pred_boxes), grad_deltas


dispatch.once_differentiable(_localization_loss_backward)


@dispatch.kernel(_localization_loss_backward)
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    from .kernels.pointwise import localization

    return localization.localization_loss_backward(*arguments)


def _localization_formula(
    pred_boxes: Tensor, target_boxes: Tensor, pred_deltas: Tensor | None, target_deltas: Tensor | None, *numbers: float
) -> Tensor:
    tensors = pred_boxes, target_boxes, pred_deltas, target_deltas
    dtype = result_dtype(*tensors)
    arguments: list[Any] = [None if tensor is None else tensor.to(dtype) for tensor in tensors]
    return reference.localization_loss(*arguments, *numbers)


def _localization_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dispatch.save(ctx, inputs[:4], inputs[4:])


def _localization_backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 8
    grad_boxes, grad_deltas = _localization_loss_backward(*ctx.saved_tensors, upstream, *ctx.parameters)
    return grad_boxes, None, grad_deltas if ctx.needs_input_grad[2] else None, *[None] * 5


localization_losses.register_autograd(_localization_backward, setup_context=_localization_context)

"""Box losses: IoU, GIoU, DIoU, CIoU."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import dispatch
from .checks import check_boxes, check_choice, check_float_tensor, check_number
from .dtypes import result_dtype
from .module import LossModule
from .reference import boxes as reference


def box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    r"""One minus the IoU of two boxes, :math:`1 - I / (U + \mathrm{eps})`, with intersection I and union U.

    Args:
        boxes1: (x1, y1, x2, y2), [..., 4], any floating dtype, any unit that both share.
        boxes2: the boxes they are compared with, of the same shape; the loss is symmetric.
        reduction: "none", "mean" or "sum".
        eps: added to the denominators, in squared units of the boxes.

    Returns:
        [...], or with a reduction a scalar: float64 if either input is, else float32. The mean of no boxes is 0,
        still connected to the graph.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    A box with x2 < x1 or y2 < y1 is empty, with area 0; the relatives of this loss take its centre, and the box around
    both boxes, from its corners as they are. Boxes that do not intersect, or only touch, have loss 1 and gradient 0. A
    box with a side of 0 intersects nothing; elsewhere such a side has the derivative with which it grows. Where ends
    coincide, the gradient is the mean of its one-sided values, as in `torch.maximum`: 0 where `boxes1` equals `boxes2`.
    An infinite coordinate makes the loss 1 or NaN. NaN in, NaN out.

    Named and defined as its relatives in torchvision.ops, which has no loss for the plain IoU.
    """
    return _compute_loss(boxes1, boxes2, "iou", reduction, eps)


def generalized_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    r"""One minus the generalized IoU, whose gradient does not vanish for boxes that do not intersect.

    .. math:: 1 - \frac{I}{U + \mathrm{eps}} + \frac{C - U}{C + \mathrm{eps}}

    with intersection I, union U and C the area of the smallest box around both. Between 0 and 2.

    Arguments, result, errors and edge cases are those of :func:`box_iou_loss`, but for boxes that do not intersect.

    Source: Rezatofighi et al., CVPR 2019, arXiv 1902.09630, algorithm 2. Values are those of
    ``torchvision.ops.generalized_box_iou_loss``, except that there boxes with x2 < x1 have negative areas.
    """
    return _compute_loss(boxes1, boxes2, "giou", reduction, eps)


def distance_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    r"""One minus the IoU, plus the distance of the centres.

    .. math:: 1 - \frac{I}{U + \mathrm{eps}} + \frac{d}{D + \mathrm{eps}}

    with intersection I, union U, d the squared distance of the centres and D the squared diagonal of the smallest box
    around both. Between 0 and 2.

    Arguments, result, errors and edge cases are those of :func:`box_iou_loss`, but for boxes that do not intersect.

    Source: Zheng et al., AAAI 2020, arXiv 1911.08287, equation 7. Values are those of
    ``torchvision.ops.distance_box_iou_loss``, except that there boxes with x2 < x1 have negative areas.
    """
    return _compute_loss(boxes1, boxes2, "diou", reduction, eps)


def complete_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    r"""One minus the IoU, plus the distance of the centres, plus the difference of the aspect ratios.

    .. math:: 1 - \frac{I}{U + \mathrm{eps}} + \frac{d}{D + \mathrm{eps}} + \alpha v, \quad
        v = \frac{4}{\pi^2} \Bigl(\arctan \frac{w_2}{h_2} - \arctan \frac{w_1}{h_1}\Bigr)^2, \quad
        \alpha = \frac{v}{1 - \mathrm{IoU} + v + \mathrm{eps}}

    with the terms of :func:`distance_box_iou_loss`; :math:`\alpha` is a constant in differentiation.

    Arguments, result, errors and edge cases are those of :func:`box_iou_loss`, but for boxes that do not intersect.
    The angle of a box without height is a right one, that of a point 0, with gradient 0.

    Source: Zheng et al., AAAI 2020, arXiv 1911.08287, equations 8 to 11. Values are those of
    ``torchvision.ops.complete_box_iou_loss``, except that there a point makes the loss NaN, and boxes with x2 < x1 have
    negative areas.
    """
    return _compute_loss(boxes1, boxes2, "ciou", reduction, eps)


class _BoxLoss(LossModule):
    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, reduction: str = "none", eps: float = 1e-7) -> None:
        check_reduction(reduction, eps)
        super().__init__(reduction=reduction, eps=eps)

    def forward(self, boxes1: Tensor, boxes2: Tensor) -> Tensor:
        """Loss of boxes [..., 4] in pairs."""
        return type(self).function(boxes1, boxes2, **self.options())


class BoxIoULoss(_BoxLoss):
    """See :func:`triton_rankloss.box_iou_loss`."""

    function = staticmethod(box_iou_loss)


class GeneralizedBoxIoULoss(_BoxLoss):
    """See :func:`triton_rankloss.generalized_box_iou_loss`."""

    function = staticmethod(generalized_box_iou_loss)


class DistanceBoxIoULoss(_BoxLoss):
    """See :func:`triton_rankloss.distance_box_iou_loss`."""

    function = staticmethod(distance_box_iou_loss)


class CompleteBoxIoULoss(_BoxLoss):
    """See :func:`triton_rankloss.complete_box_iou_loss`."""

    function = staticmethod(complete_box_iou_loss)


def box_iou(boxes1: Tensor, boxes2: Tensor, eps: float = 1e-7) -> Tensor:
    """IoU [...] of boxes [..., 4] in pairs; of a small one, 1 - box_iou_loss would have few digits."""
    return box_losses(boxes1, boxes2, "overlap", 0.0, eps)


def resolve_iou(
    iou: Tensor | None, pred_boxes: Tensor | None, target_boxes: Tensor | None, like: Tensor
) -> tuple[Tensor, str]:
    """(IoU, detached; what errors call it), as it was given or of the boxes [..., 4], on the device of `like`."""
    if iou is not None and pred_boxes is None and target_boxes is None:
        check_float_tensor("iou", iou, like=like)
        return iou.detach(), "iou"
    if iou is not None or pred_boxes is None or target_boxes is None:
        arguments = {"iou": iou, "pred_boxes": pred_boxes, "target_boxes": target_boxes}
        given = " and ".join(name for name, value in arguments.items() if value is not None)
        raise ValueError(f"give either iou, or pred_boxes and target_boxes; got {given or 'none of them'}")
    check_boxes("pred_boxes", pred_boxes, like=like)
    check_boxes("target_boxes", target_boxes, like=like, shape=pred_boxes.shape)
    return box_iou(pred_boxes.detach(), target_boxes.detach()), "the IoU of pred_boxes and target_boxes"


def check_reduction(reduction: str, eps: float = 0) -> None:
    """How losses of boxes are reduced, and what keeps their denominators from 0."""
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    check_number("eps", eps, 0)


def reduce_losses(losses: Tensor, reduction: str) -> Tensor:
    """The mean of nothing is 0."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / max(1, losses.numel()) if reduction == "mean" else total


def _compute_loss(boxes1: Tensor, boxes2: Tensor, kind: str, reduction: str, eps: float) -> Tensor:
    check_boxes("boxes1", boxes1)
    check_boxes("boxes2", boxes2, like=boxes1, shape=boxes1.shape)
    check_reduction(reduction, eps)
    return reduce_losses(box_losses(boxes1, boxes2, kind, 0.0, eps), reduction)


@torch.library.custom_op("triton_rankloss::box_loss", mutates_args=())
def box_losses(boxes1: Tensor, boxes2: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Losses [...] of boxes [..., 4] in pairs.

    Kind is iou, giou, diou, ciou or harmonic, which alone uses gamma; or overlap, which is the IoU itself.
    """
    return _formula(boxes1, boxes2, kind, gamma, eps).contiguous()


@box_losses.register_fake
def _(boxes1: Tensor, boxes2: Tensor, *_: Any) -> Tensor:
    return boxes1.new_empty(boxes1.shape[:-1], dtype=result_dtype(boxes1, boxes2))


@dispatch.kernel(box_losses)
def _(*arguments: Any) -> Tensor:
    from .kernels.pointwise import boxes

    return boxes.box_loss(*arguments)


@torch.library.custom_op("triton_rankloss::box_loss_backward", mutates_args=())
def _box_loss_backward(boxes1: Tensor, boxes2: Tensor, upstream: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    """Gradient of `boxes1`. The losses are symmetric: exchange the boxes for that of `boxes2`."""
    (gradient,) = dispatch.gradients(lambda boxes: _formula(boxes, boxes2, kind, gamma, eps), [boxes1], upstream)
    return gradient


_box_loss_backward.register_fake(dispatch.fake_gradient)
dispatch.once_differentiable(_box_loss_backward)


@dispatch.kernel(_box_loss_backward)
def _(*arguments: Any) -> Tensor:
    from .kernels.pointwise import boxes

    return boxes.box_loss_backward(*arguments)


def _formula(boxes1: Tensor, boxes2: Tensor, kind: str, gamma: float, eps: float) -> Tensor:
    dtype = result_dtype(boxes1, boxes2)
    boxes1, boxes2 = boxes1.to(dtype), boxes2.to(dtype)
    if kind == "harmonic":
        return reference.harmonic_iou_loss(boxes1, boxes2, gamma, eps)
    formulas = {
        "overlap": reference.box_iou,
        "iou": reference.box_iou_loss,
        "giou": reference.generalized_box_iou_loss,
        "diou": reference.distance_box_iou_loss,
        "ciou": reference.complete_box_iou_loss,
    }
    return formulas[kind](boxes1, boxes2, eps)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dispatch.save(ctx, inputs[:2], inputs[2:])


def _backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    gradient1 = gradient2 = None
    if upstream is not None:
        boxes1, boxes2 = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            gradient1 = _box_loss_backward(boxes1, boxes2, upstream, *ctx.parameters)
        if ctx.needs_input_grad[1]:
            gradient2 = _box_loss_backward(boxes2, boxes1, upstream, *ctx.parameters)
    return gradient1, gradient2, None, None, None


box_losses.register_autograd(_backward, setup_context=_setup_context)

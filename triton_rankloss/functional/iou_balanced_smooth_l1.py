"""IoU-balanced smooth L1 loss."""

from typing import TYPE_CHECKING

from torch import Tensor

from ..boxes import resolve_iou
from ..checks import check_avg_factor, check_float_tensor, check_number, group_name, split_avg_factor
from ..ops import iou_balanced as ops

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def iou_balanced_smooth_l1_loss(
    pred: Tensor,
    target: Tensor,
    iou: Tensor | None = None,
    *,
    pred_boxes: Tensor | None = None,
    target_boxes: Tensor | None = None,
    lambda_: float = 1.5,
    beta: float = 1.0,
    loss_weight: float = 1.0,
    avg_factor: float | Tensor | None = None,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Smooth L1 loss of box offsets in which boxes of high IoU weigh more.

    With :math:`d = \mathrm{pred} - \mathrm{target}` and :math:`u_i` the IoU of box i,

    .. math::
        \mathrm{loss} = \frac{w}{\mathrm{avg\_factor}} \sum_i u_i^\lambda \sum_c \begin{cases}
            d_{ic}^2 / 2 \beta & |d_{ic}| < \beta \\ |d_{ic}| - \beta / 2 & \text{otherwise} \end{cases}

    Args:
        pred: offsets of the positives, [P, 4] (or any number of coordinates), any floating dtype.
        target: the offsets to reach, of the same shape; differentiable as well.
        iou: :math:`u_i` in [0, 1], [P]. No gradient reaches it.
        pred_boxes: in place of `iou`, predicted boxes (x1, y1, x2, y2), [P, 4], any floating dtype; one minus their
            :func:`box_iou_loss` is :math:`u_i`. No gradient reaches them.
        target_boxes: the boxes they are compared with, of the same shape.
        lambda_: how much IoU counts; 0 is the plain smooth L1 loss.
        beta: where the square becomes a line, in units of the offsets; 0 is the L1 loss.
        loss_weight: w, which makes up for weights below 1.
        avg_factor: what the sum is divided by, a number or a tensor without dimensions, > 0 (the value of a tensor is
            not checked). Default: P, at least 1.
        group: torch.distributed process group over all of whose ranks the sum and P are taken; a given `avg_factor`
            divides the sum over all ranks, and must be the same on each. Every rank takes part with what it has, and
            gets the loss of the group; gradients are multiplied by the number of ranks, so that their mean
            (DistributedDataParallel) is the gradient of that loss. Costs one wait for the host.

    Returns:
        A scalar: float64 if `pred` or `target` is, else float32. For P = 0 it is 0, still connected to the graph.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    NaN in, NaN out.

    Source: Wu et al., arXiv 1908.05641, IoU-balanced localization loss. Values are those of the published code.
    """
    check_float_tensor("pred", pred)
    check_float_tensor("target", target, like=pred)
    if pred.dim() != 2:
        raise ValueError(f"pred must have shape [P, 4]; got {tuple(pred.shape)}")
    if target.shape != pred.shape:
        raise ValueError(f"target must have the shape of pred, {tuple(pred.shape)}; got {tuple(target.shape)}")
    iou, name = resolve_iou(iou, pred_boxes, target_boxes, pred)
    if iou.shape != pred.shape[:1]:
        raise ValueError(f"{name} must have shape {tuple(pred.shape[:1])}; got {tuple(iou.shape)}")
    check_parameters(lambda_, beta, loss_weight)
    check_avg_factor(avg_factor, pred)
    number, tensor = split_avg_factor(avg_factor)
    name_ = group_name(group)
    if name_ is None:
        return ops.smooth_l1_loss(pred, target, iou, lambda_, beta, loss_weight, number, tensor)
    divisor = ops.smooth_l1_divisor(pred.detach(), lambda_, beta, loss_weight, number, tensor, name_)
    part = ops.smooth_l1_loss(pred, target, iou, lambda_, beta, loss_weight, None, divisor)
    return ops.sum_over_ranks(part, name_)


def check_parameters(lambda_: float, beta: float, loss_weight: float) -> None:
    """Errors that name the argument."""
    check_number("lambda_", lambda_, 0)
    check_number("beta", beta, 0)
    check_number("loss_weight", loss_weight, 0)

"""IoU-balanced smooth L1 loss."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import dispatch, distributed
from .balance import divisor
from .boxes import resolve_iou
from .checks import check_avg_factor, check_float_tensor, check_number, group_name, split_avg_factor
from .dtypes import accumulation_dtype, result_dtype
from .module import LossModule
from .reference import iou_balanced as reference

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@distributed.fail_together
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
        pred_boxes: in place of `iou`, predicted boxes (x1, y1, x2, y2), [P, 4], any floating dtype; their IoU, as
            in :func:`box_iou_loss`, is :math:`u_i`. No gradient reaches them.
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
    _check_parameters(lambda_, beta, loss_weight)
    check_avg_factor(avg_factor, pred)
    parameters, factors, shared = (lambda_, beta, loss_weight), split_avg_factor(avg_factor), group_name(group)
    if shared is None:
        return _smooth_l1_loss(pred, target, iou, *parameters, *factors)
    # A plain sum: each rank makes its part, with the divisor of all, and the parts are added up.
    common = _smooth_l1_divisor(pred.detach(), *parameters, *factors, shared)
    return _sum_over_ranks(_smooth_l1_loss(pred, target, iou, *parameters, None, common), shared)


class IoUBalancedSmoothL1Loss(LossModule):
    """See :func:`triton_rankloss.iou_balanced_smooth_l1_loss`."""

    def __init__(
        self,
        *,
        lambda_: float = 1.5,
        beta: float = 1.0,
        loss_weight: float = 1.0,
        group: "ProcessGroup | None" = None,
    ) -> None:
        _check_parameters(lambda_, beta, loss_weight)
        group_name(group)
        super().__init__(lambda_=lambda_, beta=beta, loss_weight=loss_weight, group=group)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        iou: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        *,
        pred_boxes: Tensor | None = None,
        target_boxes: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar, from `iou` or from boxes."""
        boxes: dict[str, Any] = {"pred_boxes": pred_boxes, "target_boxes": target_boxes}
        return iou_balanced_smooth_l1_loss(pred, target, iou, **boxes, avg_factor=avg_factor, **self.options())


def _check_parameters(lambda_: float, beta: float, loss_weight: float) -> None:
    check_number("lambda_", lambda_, 0)
    check_number("beta", beta, 0)
    check_number("loss_weight", loss_weight, 0)


@torch.library.custom_op("triton_rankloss::iou_balanced_smooth_l1_loss", mutates_args=())
def _smooth_l1_loss(
    pred: Tensor,
    target: Tensor,
    iou: Tensor,
    lambda_: float,
    beta: float,
    loss_weight: float,
    avg_number: float | None,
    avg_tensor: Tensor | None,
) -> Tensor:
    """Loss of pred, target [P, D] and iou [P]; `avg_number` and `avg_tensor` are the two forms of avg_factor."""
    loss = _formula(pred, target, iou, lambda_, beta, loss_weight, avg_number, avg_tensor)
    return loss.to(result_dtype(pred, target))


@_smooth_l1_loss.register_fake
def _(pred: Tensor, target: Tensor, *_: Any) -> Tensor:
    return pred.new_empty((), dtype=result_dtype(pred, target))


@dispatch.kernel(_smooth_l1_loss)
def _(*arguments: Any) -> Tensor:
    from .kernels.pointwise import iou_balanced_smooth_l1

    return iou_balanced_smooth_l1.forward(*arguments)


@torch.library.custom_op("triton_rankloss::iou_balanced_smooth_l1_loss_backward", mutates_args=())
def _smooth_l1_loss_backward(
    pred: Tensor,
    target: Tensor,
    iou: Tensor,
    upstream: Tensor,
    lambda_: float,
    beta: float,
    loss_weight: float,
    avg_number: float | None,
    avg_tensor: Tensor | None,
) -> Tensor:
    """Gradient of `pred`. The loss is symmetric: exchange pred and target for that of `target`."""
    arguments = target, iou, lambda_, beta, loss_weight, avg_number, avg_tensor
    (gradient,) = dispatch.gradients(lambda x: _formula(x, *arguments), [pred], upstream)
    return gradient


@dispatch.kernel(_smooth_l1_loss_backward)
def _(*arguments: Any) -> Tensor:
    from .kernels.pointwise import iou_balanced_smooth_l1

    return iou_balanced_smooth_l1.backward(*arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *arguments, avg_tensor = inputs
    dispatch.save(ctx, (*arguments[:3], avg_tensor), arguments[3:])


def _backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    of_pred = of_target = None
    if upstream is not None:
        pred, target, iou, avg_tensor = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            of_pred = _smooth_l1_loss_backward(pred, target, iou, upstream, *ctx.parameters, avg_tensor)
        if ctx.needs_input_grad[1]:
            of_target = _smooth_l1_loss_backward(target, pred, iou, upstream, *ctx.parameters, avg_tensor)
    return of_pred, of_target, *[None] * 6


_smooth_l1_loss.register_autograd(_backward, setup_context=_setup_context)
_smooth_l1_loss_backward.register_fake(dispatch.fake_gradient)
dispatch.once_differentiable(_smooth_l1_loss_backward)


def _formula(
    pred: Tensor,
    target: Tensor,
    iou: Tensor,
    lambda_: float,
    beta: float,
    loss_weight: float,
    avg_number: float | None,
    avg_tensor: Tensor | None,
) -> Tensor:
    """The reference, on what the operators are given."""
    dtype = accumulation_dtype(pred)
    avg_factor = divisor(avg_number, avg_tensor, iou.new_full((), iou.numel(), dtype=dtype))
    values = pred.to(dtype), target.to(dtype), iou.to(dtype)
    return reference.iou_balanced_smooth_l1_loss(*values, lambda_, beta, loss_weight, avg_factor)


@torch.library.custom_op("triton_rankloss::iou_balanced_smooth_l1_divisor", mutates_args=())
def _smooth_l1_divisor(
    pred: Tensor,
    lambda_: float,
    beta: float,
    loss_weight: float,
    avg_number: float | None,
    avg_tensor: Tensor | None,
    group: str,
) -> Tensor:
    """What the sum over all ranks is divided by; a ValueError on every rank if one was called otherwise."""
    avg_factor = avg_number if avg_tensor is None else avg_tensor
    arguments = {"lambda_": lambda_, "beta": beta, "loss_weight": loss_weight, "avg_factor": avg_factor}
    sizes = distributed.check_same_call("iou_balanced_smooth_l1_loss", arguments, pred, pred.shape[0], group)
    return divisor(avg_number, avg_tensor, pred.new_full((), sum(sizes), dtype=accumulation_dtype(pred)))


@_smooth_l1_divisor.register_fake
def _(pred: Tensor, *_: Any) -> Tensor:
    return pred.new_empty((), dtype=accumulation_dtype(pred))


@torch.library.custom_op("triton_rankloss::sum_over_ranks", mutates_args=())
def _sum_over_ranks(part: Tensor, group: str) -> Tensor:
    """The loss of the group from the part of this rank; gradients are multiplied by the number of ranks."""
    return distributed.total(part.to(accumulation_dtype(part)), group).to(part.dtype)


@_sum_over_ranks.register_fake
def _(part: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(part)


def _keep_world_size(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.world_size = distributed.world_size(inputs[1])


def _multiply_by_world_size(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
    return ctx.world_size * upstream, None


_sum_over_ranks.register_autograd(_multiply_by_world_size, setup_context=_keep_world_size)

"""IoU-balanced losses as PyTorch operators.

`avg_number` and `avg_tensor` are the two forms of avg_factor, None for what is not given; without either the loss
divides by its default. Of the sums that the forward pass makes, backward needs `scale` [2] alone: what the gradient of
a negative's term and that of a positive's, times IoU^eta, are multiplied by.

With a `group` the classification losses add up their sums over the ranks before anything is made of them. Smooth L1 is
a plain sum: each rank makes its part, with the divisor of all, and the parts are added up.
"""

from typing import Any

import torch
from torch import Tensor

from ..reference import candidates, distributed, iou_balanced as reference, targets
from ..reference.terms import widest_dtype
from .dispatch import register_launcher
from .gradient import contiguous_like, once_differentiable, save


@torch.library.custom_op("triton_rankloss::spread", mutates_args=())
def spread(values: Tensor, is_positive: Tensor, name: str) -> Tensor:
    """`values` [P] of the positives in row-major order, put where the mask `is_positive` has them; 0 elsewhere."""
    return candidates.spread(values, is_positive, name)


@spread.register_fake
def _(values: Tensor, is_positive: Tensor, name: str) -> Tensor:
    return values.new_empty(is_positive.shape)


@torch.library.custom_op("triton_rankloss::iou_balanced_focal_loss", mutates_args=())
def focal_loss(
    logits: Tensor, targets: Tensor, iou: Tensor, eta: float, negative_weight: float, positive_weight: float,
    gamma: float, avg_number: float | None, avg_tensor: Tensor | None, group: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, scale [2]); `iou` is per anchor, logits.shape[:-1], or of the shape of the targets."""
    avg_factor = avg_number if avg_tensor is None else avg_tensor
    weights = (negative_weight, positive_weight)
    return reference.focal_forward(logits, targets, iou, eta, weights, gamma, avg_factor, group)


@focal_loss.register_fake
def _(
    logits: Tensor, targets: Tensor, iou: Tensor, eta: float, negative_weight: float, positive_weight: float,
    gamma: float, avg_number: float | None, avg_tensor: Tensor | None, group: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _loss_and_scale(logits)


@torch.library.custom_op("triton_rankloss::iou_balanced_focal_loss_backward", mutates_args=())
def focal_loss_backward(
    logits: Tensor, targets: Tensor, iou: Tensor, scale: Tensor, upstream: Tensor, eta: float, gamma: float
) -> Tensor:
    """Gradient of the logits, from `scale` and the upstream gradient of the loss."""
    return reference.focal_backward(logits, targets, iou, scale, upstream, eta, gamma)


@focal_loss_backward.register_fake
def _(
    logits: Tensor, targets: Tensor, iou: Tensor, scale: Tensor, upstream: Tensor, eta: float, gamma: float
) -> Tensor:
    return contiguous_like(logits)


def _focal_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, iou, eta, _, _, gamma, *_ = inputs
    save(ctx, (logits, targets, iou, output[1]), (eta, gamma))
    ctx.mark_non_differentiable(output[1])


def _focal_backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    return _gradient(focal_loss_backward, ctx, upstream), *[None] * 9


@torch.library.custom_op("triton_rankloss::iou_balanced_cross_entropy_loss", mutates_args=())
def cross_entropy_loss(
    logits: Tensor, labels: Tensor, iou: Tensor, eta: float, background: int, avg_number: float | None,
    avg_tensor: Tensor | None, group: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, scale [2]) of logits [..., K]; `labels` and `iou` [...]."""
    avg_factor = avg_number if avg_tensor is None else avg_tensor
    return reference.cross_entropy_forward(logits, labels, iou, eta, background, avg_factor, group)


@cross_entropy_loss.register_fake
def _(
    logits: Tensor, labels: Tensor, iou: Tensor, eta: float, background: int, avg_number: float | None,
    avg_tensor: Tensor | None, group: str | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _loss_and_scale(logits)


@torch.library.custom_op("triton_rankloss::iou_balanced_cross_entropy_loss_backward", mutates_args=())
def cross_entropy_loss_backward(
    logits: Tensor, labels: Tensor, iou: Tensor, scale: Tensor, upstream: Tensor, eta: float, background: int
) -> Tensor:
    """Gradient of the logits, from `scale` and the upstream gradient of the loss."""
    return reference.cross_entropy_backward(logits, labels, iou, scale, upstream, eta, background)


@cross_entropy_loss_backward.register_fake
def _(
    logits: Tensor, labels: Tensor, iou: Tensor, scale: Tensor, upstream: Tensor, eta: float, background: int
) -> Tensor:
    return contiguous_like(logits)


def _cross_entropy_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, iou, eta, background, *_ = inputs
    save(ctx, (logits, labels, iou, output[1]), (eta, background))
    ctx.mark_non_differentiable(output[1])


def _cross_entropy_backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    return _gradient(cross_entropy_loss_backward, ctx, upstream), *[None] * 7


@torch.library.custom_op("triton_rankloss::iou_balanced_smooth_l1_loss", mutates_args=())
def smooth_l1_loss(
    pred: Tensor, target: Tensor, iou: Tensor, lambda_: float, beta: float, loss_weight: float,
    avg_number: float | None, avg_tensor: Tensor | None,
) -> Tensor:  # fmt: skip
    """Loss of pred, target [P, D] and iou [P]."""
    avg_factor = avg_number if avg_tensor is None else avg_tensor
    return reference.smooth_l1_forward(pred, target, iou, lambda_, beta, loss_weight, avg_factor)


@smooth_l1_loss.register_fake
def _(
    pred: Tensor, target: Tensor, iou: Tensor, lambda_: float, beta: float, loss_weight: float,
    avg_number: float | None, avg_tensor: Tensor | None,
) -> Tensor:  # fmt: skip
    return pred.new_empty((), dtype=widest_dtype(pred, target))


@torch.library.custom_op("triton_rankloss::iou_balanced_smooth_l1_loss_backward", mutates_args=())
def smooth_l1_loss_backward(
    pred: Tensor, target: Tensor, iou: Tensor, upstream: Tensor, lambda_: float, beta: float, loss_weight: float,
    avg_number: float | None, avg_tensor: Tensor | None,
) -> Tensor:  # fmt: skip
    """Gradient of `pred`. The loss is symmetric: exchange pred and target for that of `target`."""
    avg_factor = avg_number if avg_tensor is None else avg_tensor
    return reference.smooth_l1_backward(pred, target, iou, upstream, lambda_, beta, loss_weight, avg_factor)


@smooth_l1_loss_backward.register_fake
def _(
    pred: Tensor, target: Tensor, iou: Tensor, upstream: Tensor, lambda_: float, beta: float, loss_weight: float,
    avg_number: float | None, avg_tensor: Tensor | None,
) -> Tensor:  # fmt: skip
    return contiguous_like(pred)


def _smooth_l1_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    save(ctx, (*inputs[:3], inputs[-1]), inputs[3:-1])


def _smooth_l1_backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    of_pred = of_target = None
    if upstream is not None:
        pred, target, iou, avg_tensor = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            of_pred = smooth_l1_loss_backward(pred, target, iou, upstream, *ctx.parameters, avg_tensor)
        if ctx.needs_input_grad[1]:
            of_target = smooth_l1_loss_backward(target, pred, iou, upstream, *ctx.parameters, avg_tensor)
    return of_pred, of_target, *[None] * 6


@torch.library.custom_op("triton_rankloss::iou_balanced_smooth_l1_divisor", mutates_args=())
def smooth_l1_divisor(
    pred: Tensor, lambda_: float, beta: float, loss_weight: float, avg_number: float | None, avg_tensor: Tensor | None,
    group: str,
) -> Tensor:  # fmt: skip
    """What the sum over all ranks is divided by; a ValueError on every rank if one was called otherwise."""
    avg_factor = avg_number if avg_tensor is None else avg_tensor
    return reference.smooth_l1_divisor(pred, lambda_, beta, loss_weight, avg_factor, group).clone()


@smooth_l1_divisor.register_fake
def _(
    pred: Tensor, lambda_: float, beta: float, loss_weight: float, avg_number: float | None, avg_tensor: Tensor | None,
    group: str,
) -> Tensor:  # fmt: skip
    return pred.new_empty((), dtype=targets.accumulation_dtype(pred))


@torch.library.custom_op("triton_rankloss::sum_over_ranks", mutates_args=())
def sum_over_ranks(part: Tensor, group: str) -> Tensor:
    """The loss of the group from the part of this rank; gradients are multiplied by the number of ranks."""
    return distributed.total(part.to(targets.accumulation_dtype(part)), group).to(part.dtype)


@sum_over_ranks.register_fake
def _(part: Tensor, group: str) -> Tensor:
    return torch.empty_like(part)


def _sum_over_ranks_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.world_size = distributed.world_size(inputs[1])


def _sum_over_ranks_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
    return ctx.world_size * upstream, None


def _loss_and_scale(logits: Tensor) -> tuple[Tensor, Tensor]:
    dtype = targets.result_dtype(logits)
    return logits.new_empty((), dtype=dtype), logits.new_empty(2, dtype=dtype)


def _gradient(backward_op: Any, ctx: Any, upstream: Tensor | None) -> Tensor | None:
    if upstream is None or not ctx.needs_input_grad[0]:
        return None
    return backward_op(*ctx.saved_tensors, upstream, *ctx.parameters)


register_launcher(focal_loss, "iou_balanced", "focal_forward")
register_launcher(focal_loss_backward, "iou_balanced", "focal_backward")
register_launcher(cross_entropy_loss, "iou_balanced_cross_entropy", "forward")
register_launcher(cross_entropy_loss_backward, "iou_balanced_cross_entropy", "backward")
focal_loss.register_autograd(_focal_backward, setup_context=_focal_context)
cross_entropy_loss.register_autograd(_cross_entropy_backward, setup_context=_cross_entropy_context)
register_launcher(smooth_l1_loss, "iou_balanced_smooth_l1", "forward")
register_launcher(smooth_l1_loss_backward, "iou_balanced_smooth_l1", "backward")
sum_over_ranks.register_autograd(_sum_over_ranks_backward, setup_context=_sum_over_ranks_context)
smooth_l1_loss.register_autograd(_smooth_l1_backward, setup_context=_smooth_l1_context)
for _operator in (focal_loss_backward, cross_entropy_loss_backward, smooth_l1_loss_backward):
    once_differentiable(_operator)

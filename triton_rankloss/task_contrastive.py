"""Task-contrastive loss: how far the score of a positive is from its IoU."""

from typing import Any

import torch
from torch import Tensor

from . import dispatch
from .boxes import check_reduction, reduce_losses
from .checks import (
    check_background,
    check_choice,
    check_float_tensor,
    check_logits_and_targets,
    check_number,
    check_per_positive,
    check_softmax_labels,
)
from .dtypes import accumulation_dtype, clamp_infinities, result_dtype
from .module import LossModule
from .reference import harmonic as reference
from .targets import as_anchors, check_count, is_per_anchor, positive_positions


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
    _check_parameters(margin, activation, background, reduction)
    if activation == "softmax":
        check_softmax_labels(logits, targets, background, "targets")
    else:
        check_logits_and_targets(logits, targets)
    check_float_tensor("iou", iou, like=logits)
    logits, targets, iou = as_anchors(logits, targets, iou)
    check_per_positive("iou", iou, logits, per_anchor=True)
    positions = positive_positions(logits, targets, background if activation == "softmax" else None)
    if is_per_anchor(iou, logits):
        iou = iou.to(result_dtype(logits, iou))  # gradients of positives that share an anchor are rounded as one
        iou = iou.reshape(-1)[positions // (max(1, logits.shape[-1]) if logits.dim() > 1 else 1)]
    return reduce_losses(task_contrastive_losses(logits, positions, iou, margin, activation), reduction)


class TaskContrastiveLoss(LossModule):
    """See :func:`triton_rankloss.task_contrastive_loss`."""

    def __init__(
        self, *, margin: float = 0.2, activation: str = "sigmoid", background: int = -1, reduction: str = "none"
    ) -> None:
        _check_parameters(margin, activation, background, reduction)
        super().__init__(margin=margin, activation=activation, background=background, reduction=reduction)

    def forward(self, logits: Tensor, targets: Tensor, iou: Tensor) -> Tensor:
        """The loss of each positive, or reduced."""
        return task_contrastive_loss(logits, targets, iou, **self.options())


def _check_parameters(margin: float, activation: str, background: int, reduction: str) -> None:
    check_number("margin", margin, 0, 1)
    check_choice("activation", activation, ("sigmoid", "softmax"))
    check_background(background)
    check_reduction(reduction)


@torch.library.custom_op("triton_rankloss::task_contrastive_loss", mutates_args=())
def task_contrastive_losses(logits: Tensor, positions: Tensor, iou: Tensor, margin: float, activation: str) -> Tensor:
    """Losses [P] of the positives at flat `positions`, with their IoU [P]."""
    check_count(iou, positions, "iou")
    return terms_of_rows(logits, positions, iou, margin, activation).to(result_dtype(logits, iou))


def terms_of_rows(logits: Tensor, positions: Tensor, iou: Tensor, margin: float, activation: str) -> Tensor:
    """The formula."""
    rows, channels, _ = _rows_of_positives(logits, positions)
    return reference.task_contrastive_loss(rows, channels, iou.to(rows.dtype), margin, activation)


def add_gradients_of_rows(
    grad_logits: Tensor,
    logits: Tensor,
    positions: Tensor,
    iou: Tensor,
    upstream: Tensor,
    margin: float,
    activation: str,
) -> Tensor:
    """The gradient of `iou`; adds that of the logits, the sum of those of an anchor's positives, to `grad_logits`."""
    rows, channels, anchors = _rows_of_positives(logits, positions)
    grad_rows, grad_iou = dispatch.gradients(
        lambda rows, iou: reference.task_contrastive_loss(rows, channels, iou.to(rows.dtype), margin, activation),
        [rows, iou],
        upstream,
    )
    grad_logits.view(-1, rows.shape[1]).index_add_(0, anchors, grad_rows.to(grad_logits.dtype))
    return grad_iou


@task_contrastive_losses.register_fake
def _(logits: Tensor, positions: Tensor, iou: Tensor, *_: Any) -> Tensor:
    return iou.new_empty(iou.shape, dtype=result_dtype(logits, iou))


@dispatch.kernel(task_contrastive_losses)
def _(*arguments: Any) -> Tensor:
    from .kernels.pointwise import task_contrastive

    return task_contrastive.forward(*arguments)


@torch.library.custom_op("triton_rankloss::task_contrastive_loss_backward", mutates_args=())
def _task_contrastive_loss_backward(
    logits: Tensor, positions: Tensor, iou: Tensor, upstream: Tensor, margin: float, activation: str
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits and of the IoU."""
    gradient = logits.new_zeros(logits.shape, dtype=accumulation_dtype(logits))  # rounded when it has been added up
    grad_iou = add_gradients_of_rows(gradient, logits, positions, iou, upstream, margin, activation)
    return gradient.to(logits.dtype), grad_iou


@_task_contrastive_loss_backward.register_fake
def _(logits: Tensor, positions: Tensor, iou: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return dispatch.fake_gradient(logits), dispatch.fake_gradient(iou)


dispatch.once_differentiable(_task_contrastive_loss_backward)


@dispatch.kernel(_task_contrastive_loss_backward)
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    from .kernels.pointwise import task_contrastive_gradient

    return task_contrastive_gradient.backward(*arguments)


def _rows_of_positives(logits: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(logits [P, C] at the anchors of the positives, the positives' channels [P], their anchors [P])."""
    num_channels = max(1, logits.shape[-1]) if logits.dim() > 1 else 1
    anchors = positions // num_channels
    rows = clamp_infinities(logits.reshape(-1, num_channels)[anchors]).to(accumulation_dtype(logits))
    return rows, positions % num_channels, anchors


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dispatch.save(ctx, inputs[:3], inputs[3:])


def _backward(ctx: Any, upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 5
    grad_logits, grad_iou = _task_contrastive_loss_backward(*ctx.saved_tensors, upstream, *ctx.parameters)
    return grad_logits, None, grad_iou, None, None


task_contrastive_losses.register_autograd(_backward, setup_context=_setup_context)

"""IoU-balanced softmax cross-entropy."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from . import dispatch, distributed
from .balance import balance, fake_loss_and_scale
from .boxes import resolve_iou
from .checks import (
    check_avg_factor,
    check_background,
    check_number,
    check_softmax_labels,
    group_name,
    split_avg_factor,
)
from .module import LossModule
from .reference import iou_balanced as reference
from .targets import as_anchors, in_blocks, scatter_to_positives, softmax_classes, softmax_rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@distributed.fail_together
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
            floating dtype; their IoU, as in :func:`box_iou_loss`, is :math:`u_i`. No gradient reaches them.
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
    logits, labels, iou = as_anchors(logits, labels, iou)
    if iou.dim() != 1 and iou.shape != labels.shape:
        raise ValueError(
            f"{name} must have shape [P] or {tuple(labels.shape)}, P the number of foreground samples; got "
            f"{tuple(iou.shape)}"
        )
    _check_parameters(eta, background)
    check_avg_factor(avg_factor, logits)
    if iou.shape != labels.shape:
        iou = scatter_to_positives(iou, softmax_classes(logits, labels, background)[1], name)
    return _cross_entropy_loss(
        logits, labels, iou, eta, background, *split_avg_factor(avg_factor), group_name(group)
    )[0]  # fmt: skip


class IoUBalancedCrossEntropyLoss(LossModule):
    """See :func:`triton_rankloss.iou_balanced_cross_entropy_loss`."""

    def __init__(self, *, eta: float = 1.5, background: int = -1, group: "ProcessGroup | None" = None) -> None:
        _check_parameters(eta, background)
        group_name(group)
        super().__init__(eta=eta, background=background, group=group)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        iou: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        *,
        pred_boxes: Tensor | None = None,
        target_boxes: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar, from `iou` or from boxes."""
        boxes: dict[str, Any] = {"pred_boxes": pred_boxes, "target_boxes": target_boxes}
        return iou_balanced_cross_entropy_loss(logits, labels, iou, **boxes, avg_factor=avg_factor, **self.options())


def _check_parameters(eta: float, background: int) -> None:
    check_number("eta", eta, 0)
    check_background(background)


@torch.library.custom_op("triton_rankloss::iou_balanced_cross_entropy_loss", mutates_args=())
def _cross_entropy_loss(
    logits: Tensor,
    labels: Tensor,
    iou: Tensor,
    eta: float,
    background: int,
    avg_number: float | None,
    avg_tensor: Tensor | None,
    group: str | None,
) -> tuple[Tensor, Tensor]:
    """(loss, scale [2]) of logits [..., K]; `labels` and `iou` [...].

    Of the sums backward needs `scale` alone: what is multiplied by the gradient of l_j, and by u_i^eta times that of
    l_i, in float64. `avg_number` and `avg_tensor` are the two forms of avg_factor.
    """
    _check_same_call(logits, eta, background, avg_number, avg_tensor, group)
    terms = cross_entropies(logits, labels)
    is_negative, is_positive = softmax_classes(logits, labels, background)
    weights = reference.iou_weights(iou[is_positive].to(terms.dtype), eta)
    sums = reference.sum_terms(terms[is_negative], terms[is_positive], weights)
    loss, scale = balance(sums, (labels >= 0).sum(), avg_number, avg_tensor, group)
    return loss.to(terms.dtype), scale


_cross_entropy_loss.register_fake(fake_loss_and_scale)


@dispatch.kernel(_cross_entropy_loss)
def _(logits: Tensor, labels: Tensor, iou: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    from .kernels.pointwise import iou_balanced_cross_entropy

    _check_same_call(logits, *arguments)
    return iou_balanced_cross_entropy.forward(logits, labels, iou, *arguments)


@torch.library.custom_op("triton_rankloss::iou_balanced_cross_entropy_loss_backward", mutates_args=())
def _cross_entropy_loss_backward(
    logits: Tensor, labels: Tensor, iou: Tensor, scale: Tensor, upstream: Tensor, eta: float, background: int
) -> Tensor:
    """Gradient of the logits, from `scale` and the upstream gradient of the loss."""
    of_negatives, of_positives = (scale * upstream).unbind()
    is_negative, is_positive = softmax_classes(logits, labels, background)
    factors = torch.where(is_negative, of_negatives, 0)
    factors[is_positive] = of_positives * reference.iou_weights(iou[is_positive].to(scale.dtype), eta)
    return cross_entropy_gradient(logits, labels, factors)


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(x)_label [...] of samples [..., K]; those of ignored samples mean nothing."""
    of_blocks = [cross_entropy(*softmax_rows(*block), reduction="none") for block in in_blocks(logits, labels)]
    return torch.cat(of_blocks).view(labels.shape)


def cross_entropy_gradient(logits: Tensor, labels: Tensor, upstream: Tensor) -> Tensor:
    """Gradient of the logits, from that [...] of the cross-entropies, 0 where a sample is ignored.

    It is upstream (softmax(x)_c - [c = label]); autograd would take a CPU 1.5 times as long for the whole loss.
    """
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    blocks = in_blocks(gradient, upstream.view(labels.shape)), in_blocks(logits, labels)
    for (grad_block, factors), block in zip(*blocks, strict=True):
        rows, channels = softmax_rows(*block)
        slopes = rows.softmax(1)
        slopes[torch.arange(len(channels), device=channels.device), channels] -= 1
        grad_block.copy_(slopes.mul_(factors.unsqueeze(1)))
    return gradient


@dispatch.kernel(_cross_entropy_loss_backward)
def _(*arguments: Any) -> Tensor:
    from .kernels.pointwise import iou_balanced_cross_entropy

    return iou_balanced_cross_entropy.backward(*arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, iou, eta, background, *_ = inputs
    dispatch.save(ctx, (logits, labels, iou, output[1]), (eta, background))
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, upstream: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    gradient = None
    if upstream is not None and ctx.needs_input_grad[0]:
        gradient = _cross_entropy_loss_backward(*ctx.saved_tensors, upstream, *ctx.parameters)
    return gradient, *[None] * 7


_cross_entropy_loss.register_autograd(_backward, setup_context=_setup_context)
_cross_entropy_loss_backward.register_fake(dispatch.fake_gradient)
dispatch.once_differentiable(_cross_entropy_loss_backward)


def _check_same_call(
    logits: Tensor, eta: float, background: int, avg_number: float | None, avg_tensor: Tensor | None, group: str | None
) -> None:
    if group is not None:
        avg_factor = avg_number if avg_tensor is None else avg_tensor
        arguments = {"eta": eta, "background": background % logits.shape[-1], "avg_factor": avg_factor}
        distributed.check_same_call("iou_balanced_cross_entropy_loss", arguments, logits, 0, group)

"""IoU-balanced focal loss and binary cross-entropy."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import dispatch, distributed
from .balance import balance, fake_loss_and_scale
from .boxes import resolve_iou
from .checks import (
    check_avg_factor,
    check_logits_and_targets,
    check_number,
    check_per_positive,
    group_name,
    split_avg_factor,
)
from .dtypes import result_dtype
from .focal import focal_gradient, sum_of_negatives
from .module import LossModule
from .reference import iou_balanced as reference
from .reference.focal import focal
from .targets import (
    as_anchors,
    background_flags,
    check_count,
    positive_positions,
    select,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@distributed.fail_together
def iou_balanced_focal_loss(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor | None = None,
    *,
    pred_boxes: Tensor | None = None,
    target_boxes: Tensor | None = None,
    eta: float = 1.5,
    alpha: float = 0.25,
    gamma: float = 2.0,
    avg_factor: float | Tensor | None = None,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Sigmoid focal loss in which positives of high IoU weigh more.

    For positives i with IoU :math:`u_i` and negatives j, and :math:`p = \sigma(\mathrm{logit})`,

    .. math::
        \mathrm{loss} = \frac{1}{\mathrm{avg\_factor}} \Bigl(\sum_j l_j + Z \sum_i u_i^\eta l_i\Bigr), \quad
        Z = \frac{\sum_i l_i}{\sum_i u_i^\eta l_i + 10^{-6}}

        l_i = -\alpha (1 - p_i)^\gamma \log p_i, \quad l_j = -(1 - \alpha) p_j^\gamma \log(1 - p_j)

    Z keeps the sum over the positives what it was without the weights, which are constants in differentiation.

    Args:
        logits: scores before the sigmoid, [..., C] or [N], any floating dtype.
        targets: dense, of the shape of `logits` (> 0 positive, 0 negative, -1 ignored), or integer labels of shape
            ``logits.shape[:-1]`` (0..C-1 foreground, C background, -1 ignored).
        iou: :math:`u_i` in [0, 1], one value for every anchor (shape ``logits.shape[:-1]``, for logits [N] shape [N];
            only those of positives are read), or [P] in row-major order of the positives; a shape that could be either
            is read per anchor. On a GPU, where it would make the host wait, P is not checked: the loss is NaN if it is
            not the number of positives. No gradient reaches it.
        pred_boxes: in place of `iou`, predicted boxes (x1, y1, x2, y2) in either of its forms, [..., 4] or [P, 4], any
            floating dtype; their IoU, as in :func:`box_iou_loss`, is :math:`u_i`. No gradient reaches them.
        target_boxes: the boxes they are compared with, of the same shape.
        eta: how much IoU counts; 0 is the plain focal loss.
        alpha: weight of the positives; of the negatives it is 1 - alpha.
        gamma: focusing exponent, >= 0.
        avg_factor: what the sum is divided by, a number or a tensor without dimensions, > 0 (the value of a tensor is
            not checked). Default: the number of positives, at least 1.
        group: torch.distributed process group over whose global batch every sum is taken, and the number of positives
            counted; a given `avg_factor` divides the sum over all ranks, and must be the same on each. Every rank
            takes part with what it has, and gets the loss of the group; gradients are multiplied by the number of
            ranks, so that their mean (DistributedDataParallel) is the gradient of that loss. Costs one wait for the
            host.

    Returns:
        A scalar: float64 for float64 logits, else float32. Without positives the negatives' part alone.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    Positives whose IoU are all 0 contribute nothing. An infinite logit counts as a large finite one: 1e30, or the
    largest that the dtype can hold. A NaN among the candidates makes the loss NaN.

    Source: Wu et al., arXiv 1908.05641, IoU-balanced classification loss, on the focal loss of Lin et al., ICCV 2017,
    arXiv 1708.02002. Values are those of the published code, which makes one-hot tensors of the size of the logits.
    """
    candidates = _candidates(logits, targets, iou, pred_boxes, target_boxes)
    _check_parameters(eta, alpha, gamma)
    check_avg_factor(avg_factor, logits)
    parameters = eta, 1.0 - alpha, float(alpha), gamma
    return _focal_loss(*candidates, *parameters, *split_avg_factor(avg_factor), group_name(group))[0]


@distributed.fail_together
def iou_balanced_bce_loss(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor | None = None,
    *,
    pred_boxes: Tensor | None = None,
    target_boxes: Tensor | None = None,
    eta: float = 1.5,
    avg_factor: float | Tensor | None = None,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Binary cross-entropy in which positives of high IoU weigh more.

    :func:`iou_balanced_focal_loss` with the terms :math:`l_i = -\log p_i` and :math:`l_j = -\log(1 - p_j)`; arguments,
    result, errors and edge cases are the same.

    Source: Wu et al., arXiv 1908.05641, IoU-balanced classification loss. The published code mis-indexes the positives
    in this form; this follows the paper.
    """
    candidates = _candidates(logits, targets, iou, pred_boxes, target_boxes)
    check_number("eta", eta, 0)
    check_avg_factor(avg_factor, logits)
    parameters = eta, 1.0, 1.0, 0.0  # the focal loss with gamma = 0, and without weights of the classes
    return _focal_loss(*candidates, *parameters, *split_avg_factor(avg_factor), group_name(group))[0]


class IoUBalancedFocalLoss(LossModule):
    """See :func:`triton_rankloss.iou_balanced_focal_loss`."""

    def __init__(
        self, *, eta: float = 1.5, alpha: float = 0.25, gamma: float = 2.0, group: "ProcessGroup | None" = None
    ) -> None:
        _check_parameters(eta, alpha, gamma)
        group_name(group)
        super().__init__(eta=eta, alpha=alpha, gamma=gamma, group=group)

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        iou: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        *,
        pred_boxes: Tensor | None = None,
        target_boxes: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar, from `iou` or from boxes."""
        boxes: dict[str, Any] = {"pred_boxes": pred_boxes, "target_boxes": target_boxes}
        return iou_balanced_focal_loss(logits, targets, iou, **boxes, avg_factor=avg_factor, **self.options())


class IoUBalancedBCELoss(LossModule):
    """See :func:`triton_rankloss.iou_balanced_bce_loss`."""

    def __init__(self, *, eta: float = 1.5, group: "ProcessGroup | None" = None) -> None:
        check_number("eta", eta, 0)
        group_name(group)
        super().__init__(eta=eta, group=group)

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        iou: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        *,
        pred_boxes: Tensor | None = None,
        target_boxes: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar, from `iou` or from boxes."""
        boxes: dict[str, Any] = {"pred_boxes": pred_boxes, "target_boxes": target_boxes}
        return iou_balanced_bce_loss(logits, targets, iou, **boxes, avg_factor=avg_factor, **self.options())


def _check_parameters(eta: float, alpha: float, gamma: float) -> None:
    check_number("eta", eta, 0)
    check_number("alpha", alpha, 0, 1)
    check_number("gamma", gamma, 0)


def _candidates(
    logits: Tensor, targets: Tensor, iou: Tensor | None, pred_boxes: Tensor | None, target_boxes: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, str]:
    """(logits, targets, IoU per anchor, of the shape of the logits, or [P], and what errors call it)."""
    check_logits_and_targets(logits, targets)
    iou, name = resolve_iou(iou, pred_boxes, target_boxes, logits)
    logits, targets, iou = as_anchors(logits, targets, iou)
    check_per_positive(name, iou, logits, per_anchor=True)
    return logits, targets, iou, name


@torch.library.custom_op("triton_rankloss::iou_balanced_focal_loss", mutates_args=())
def _focal_loss(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor,
    name: str,
    eta: float,
    negative_weight: float,
    positive_weight: float,
    gamma: float,
    avg_number: float | None,
    avg_tensor: Tensor | None,
    group: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, scale [2], *notes of the kernels); `iou` is per anchor, logits.shape[:-1], or of every logit, or [P].

    Of the sums backward needs `scale` alone: what is multiplied by the gradient of focal(-x_j), and by u_i^eta times
    that of focal(x_i). It is float64: Z, where an infinite logit has an IoU near 0, has no room in float32.
    `avg_number` and `avg_tensor` are the two forms of avg_factor.
    """
    positions = positive_positions(logits, targets, None)
    if _is_per_positive(iou, logits):
        check_count(iou, positions, name)
    _check_same_call(logits, eta, negative_weight, positive_weight, gamma, avg_number, avg_tensor, group)
    of_positives = positive_weight * focal(select(logits, positions), gamma)
    of_negatives = negative_weight * sum_of_negatives(logits, targets, gamma)
    sums = reference.sum_terms(of_negatives, of_positives, _weights_at(positions, logits, iou, eta))
    loss, scale = balance(sums, positions.numel(), avg_number, avg_tensor, group)
    scale = torch.stack([negative_weight * scale[0], positive_weight * scale[1]])
    background, ends = _notes(logits, iou)
    return loss.to(result_dtype(logits)), scale, background.zero_(), ends.zero_()


@_focal_loss.register_fake
def _(logits: Tensor, targets: Tensor, iou: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *fake_loss_and_scale(logits), *_notes(logits, iou)


def _notes(logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
    """Room for what the forward kernels note for backward: background flags, and for `iou` [P] how many positives each
    block and all before it have."""
    background = background_flags(logits)
    num_ends = background.numel() if _is_per_positive(iou, logits) else 0
    return background, background.new_empty(num_ends, dtype=torch.long)


@dispatch.kernel(_focal_loss)
def _(
    logits: Tensor, targets: Tensor, iou: Tensor, name: str, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from .kernels.pointwise import iou_balanced

    if _is_per_positive(iou, logits) and logits.device.type == "cpu":  # a GPU would have to be waited for
        check_count(iou, positive_positions(logits, targets, None), name)
    _check_same_call(logits, *arguments)
    return iou_balanced.focal_forward(logits, targets, iou, *arguments)


@torch.library.custom_op("triton_rankloss::iou_balanced_focal_loss_backward", mutates_args=())
def _focal_loss_backward(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor,
    scale: Tensor,
    background: Tensor,
    ends: Tensor,
    upstream: Tensor,
    eta: float,
    gamma: float,
) -> Tensor:
    """Gradient of the logits, from `scale` and the upstream gradient of the loss."""
    of_negatives, of_positives = (scale * upstream).unbind()
    positions = positive_positions(logits, targets, None)
    weights = _weights_at(positions, logits, iou, eta).to(scale.dtype)
    return focal_gradient(logits, targets, positions, of_negatives, of_positives * weights, gamma)


@dispatch.kernel(_focal_loss_backward)
def _(*arguments: Any) -> Tensor:
    from .kernels.pointwise import iou_balanced

    return iou_balanced.focal_backward(*arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, iou, _, eta, _, _, gamma, *_ = inputs
    dispatch.save(ctx, (logits, targets, iou, *output[1:]), (eta, gamma))
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    gradient = None
    if upstream is not None and ctx.needs_input_grad[0]:
        gradient = _focal_loss_backward(*ctx.saved_tensors, upstream, *ctx.parameters)
    return gradient, *[None] * 10


_focal_loss.register_autograd(_backward, setup_context=_setup_context)
_focal_loss_backward.register_fake(dispatch.fake_gradient)
dispatch.once_differentiable(_focal_loss_backward)


def _check_same_call(
    logits: Tensor,
    eta: float,
    negative_weight: float,
    positive_weight: float,
    gamma: float,
    avg_number: float | None,
    avg_tensor: Tensor | None,
    group: str | None,
) -> None:
    if group is not None:
        is_bce = negative_weight == positive_weight == 1
        avg_factor = avg_number if avg_tensor is None else avg_tensor
        arguments = {"eta": eta, "alpha": positive_weight, "gamma": gamma, "avg_factor": avg_factor}
        loss = "iou_balanced_bce_loss" if is_bce else "iou_balanced_focal_loss"
        distributed.check_same_call(loss, arguments, logits, 0, group)


def _is_per_positive(iou: Tensor, logits: Tensor) -> bool:
    """[P], and not a value for every anchor or logit."""
    return iou.shape not in (logits.shape, logits.shape[:-1])


def _weights_at(positions: Tensor, logits: Tensor, iou: Tensor, eta: float) -> Tensor:
    """u_i^eta [P] of the positives at flat `positions`."""
    if _is_per_positive(iou, logits):
        own = iou
    else:
        own = iou.reshape(-1)[positions if iou.shape == logits.shape else positions // logits.shape[-1]]
    return reference.iou_weights(own.to(result_dtype(logits)), eta)

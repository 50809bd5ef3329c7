"""DR Loss."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import dispatch, distributed
from .checks import check_bool, check_logits_and_targets, check_number, group_name
from .dtypes import accumulation_dtype, clamp_infinities, result_dtype
from .module import LossModule
from .reference import dr as reference
from .scopes import group_scopes
from .targets import BLOCK, as_anchors, background_flags, fill_others, in_blocks, positive_positions, select

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@distributed.fail_together
def dr_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    margin: float = 0.5,
    pos_lambda: float = 1.0,
    neg_lambda: float = 0.1 / math.log(3.5),
    L: float = 6.0,
    tau: float = 4.0,
    per_image: bool = False,
    group: "ProcessGroup | None" = None,
) -> Tensor:
    r"""Distributional ranking loss: the mean probability of hard positives above that of hard negatives by a margin.

    For positives i and negatives j with probabilities :math:`p = \sigma(\mathrm{logit})`,

    .. math::
        \bar p_+ = \frac{\sum_i e^{-p_i / \lambda_+} p_i}{\sum_i e^{-p_i / \lambda_+}}, \quad
        \bar p_- = \frac{\sum_j e^{p_j / \lambda_-} p_j}{\sum_j e^{p_j / \lambda_-}}, \quad
        \mathrm{loss} = \frac{\tau}{L} \log\bigl(1 + e^{L (\bar p_- - \bar p_+ + \mathrm{margin})}\bigr)

    The gradient is the ordinary one, through the weights as well.

    Args:
        logits: scores before the sigmoid, [..., C] or [N], any floating dtype.
        targets: dense, of the shape of `logits` (> 0 positive, 0 negative, -1 ignored), or integer labels of shape
            ``logits.shape[:-1]`` (0..C-1 foreground, C background, -1 ignored).
        margin: by how much :math:`\bar p_+` is to exceed :math:`\bar p_-`; both are in [0, 1].
        pos_lambda: :math:`\lambda_+`, > 0; small values look at the lowest positives alone.
        neg_lambda: :math:`\lambda_-`, > 0; small values look at the highest negatives alone.
        L: sharpness of the soft hinge, > 0.
        tau: weight of the loss, > 0.
        per_image: make the loss of each image (first dimension), as the paper does, and average over the images that
            have a candidate. Otherwise all candidates are one scope, as in the published code.
        group: torch.distributed process group whose global batch is one scope, exactly, or whose images are averaged
            over. Every rank takes part with what it has, and gets the loss of the group; gradients are multiplied by
            the number of ranks, so that their mean (DistributedDataParallel) is the gradient of that loss. Costs one
            wait for the host.

    Returns:
        A scalar: float64 for float64 logits, else float32. Without positives :math:`\bar p_+ = 1`, so that negatives
        are still pushed down; without negatives :math:`\bar p_- = 0`; without both the loss is 0, with gradient 0.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    An infinite logit has probability 0 or 1, and gradient 0. A NaN among the candidates makes the loss NaN, without
    positives too: negatives are still pushed down then.

    Source: Qian et al., CVPR 2020, arXiv 1907.10156. Values are those of the published code, which makes one-hot
    tensors of the size of the logits and has no per-image form.
    """
    _check_parameters(margin, pos_lambda, neg_lambda, L, tau, per_image)
    check_logits_and_targets(logits, targets, per_image=per_image)
    logits, targets = as_anchors(logits, targets)
    return _dr_loss(logits, targets, margin, pos_lambda, neg_lambda, L, tau, per_image, group_name(group))[0]


class DRLoss(LossModule):
    """See :func:`triton_rankloss.dr_loss`."""

    def __init__(
        self,
        *,
        margin: float = 0.5,
        pos_lambda: float = 1.0,
        neg_lambda: float = 0.1 / math.log(3.5),
        L: float = 6.0,
        tau: float = 4.0,
        per_image: bool = False,
        group: "ProcessGroup | None" = None,
    ) -> None:
        parameters = {"margin": margin, "pos_lambda": pos_lambda, "neg_lambda": neg_lambda, "L": L, "tau": tau}
        _check_parameters(**parameters, per_image=per_image)
        group_name(group)
        super().__init__(**parameters, per_image=per_image, group=group)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        return dr_loss(logits, targets, **self.options())


def _check_parameters(
    margin: float, pos_lambda: float, neg_lambda: float, L: float, tau: float, per_image: bool
) -> None:
    check_number("margin", margin, 0)
    check_number("pos_lambda", pos_lambda, 0, low_open=True)
    check_number("neg_lambda", neg_lambda, 0, low_open=True)
    check_number("L", L, 0, low_open=True)
    check_number("tau", tau, 0, low_open=True)
    check_bool("per_image", per_image)


@torch.library.custom_op("triton_rankloss::dr_loss", mutates_args=())
def _dr_loss(
    logits: Tensor,
    targets: Tensor,
    margin: float,
    pos_lambda: float,
    neg_lambda: float,
    L: float,
    tau: float,
    per_image: bool,
    group: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, state [2, 3, S], background flags) of S scopes; of positives and negatives, state is (coefficient, shift,
    mean).

    With k = -1 / pos_lambda for positives and 1 / neg_lambda for negatives, and p the sigmoid of the logit x,
    d loss / dx = coefficient exp(k (p - shift)) (1 + k (p - mean)) p (1 - p).
    """
    _check_same_call(logits, margin, pos_lambda, neg_lambda, L, tau, per_image, group)
    sums = _sum_scopes(logits, targets, (-1 / pos_lambda, 1 / neg_lambda), per_image, group)
    means = torch.stack([reference.tilted_mean(sums[0], default=1.0), reference.tilted_mean(sums[1], default=0.0)])
    has_candidate = (sums[:, 1] != 0).any(0)

    def add_losses(means: Tensor) -> Tensor:
        return torch.where(has_candidate, reference.hinge(means[1] - means[0] + margin, L, tau), 0).sum()

    loss, num_scopes = add_losses(means), has_candidate.sum()
    (slopes,) = dispatch.gradients(add_losses, [means], torch.ones_like(loss))
    if group is not None:
        slopes *= distributed.world_size(group)
        if per_image:
            loss, num_scopes = distributed.total(torch.stack([loss, num_scopes.to(loss.dtype)]), group)
    num_scopes = num_scopes.clamp(min=1)
    coefficients = slopes / num_scopes / sums[:, 1].clamp(min=1)
    dtype = result_dtype(logits)
    state = torch.stack([coefficients, sums[:, 0], means], 1)
    return (loss / num_scopes).to(dtype), state.to(dtype), background_flags(logits, per_image).zero_()


@_dr_loss.register_fake
def _(logits: Tensor, targets: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    per_image, _ = arguments[-2:]
    loss = logits.new_empty((), dtype=result_dtype(logits))
    return loss, loss.new_empty((2, 3, logits.shape[0] if per_image else 1)), background_flags(logits, per_image)


@dispatch.kernel(_dr_loss)
def _(logits: Tensor, targets: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    from .kernels.pointwise import dr

    _check_same_call(logits, *arguments)
    return dr.forward(logits, targets, *arguments)


@torch.library.custom_op("triton_rankloss::dr_loss_backward", mutates_args=())
def _dr_loss_backward(
    logits: Tensor,
    targets: Tensor,
    state: Tensor,
    background: Tensor,
    upstream: Tensor,
    pos_lambda: float,
    neg_lambda: float,
) -> Tensor:
    """Gradient of the logits, from `state` and the upstream gradient; S > 1: one scope for each logits[s]."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    num_scopes, (of_positives, of_negatives) = state.shape[2], state
    for scopes, x, its_targets, grad in _split_scopes(num_scopes, logits, targets, gradient):
        for (grad_block, _), block in zip(in_blocks(grad, its_targets), in_blocks(x, its_targets), strict=True):
            x_of_scopes = _by_scope(clamp_infinities(block[0]), scopes)
            slopes = _slopes(x_of_scopes, 1 / neg_lambda, of_negatives[:, scopes, None], upstream)
            grad_block.copy_(fill_others(slopes.view(grad_block.shape), block[1], 0.0))
    positions = positive_positions(logits, targets, None)
    its_state = of_positives[:, positions // max(1, logits.numel() // max(1, num_scopes))]
    slopes = _slopes(select(logits, positions), -1 / pos_lambda, its_state, upstream)
    gradient.view(-1).scatter_(0, positions, slopes.to(gradient.dtype))
    return gradient


@dispatch.kernel(_dr_loss_backward)
def _(*arguments: Any) -> Tensor:
    from .kernels.pointwise import dr

    return dr.backward(*arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, _, pos_lambda, neg_lambda, *_ = inputs
    dispatch.save(ctx, (logits, targets, *output[1:]), (pos_lambda, neg_lambda))
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, upstream: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    gradient = None
    if upstream is not None and ctx.needs_input_grad[0]:
        gradient = _dr_loss_backward(*ctx.saved_tensors, upstream, *ctx.parameters)
    return gradient, *[None] * 8


_dr_loss.register_autograd(_backward, setup_context=_setup_context)
_dr_loss_backward.register_fake(dispatch.fake_gradient)
dispatch.once_differentiable(_dr_loss_backward)


def _check_same_call(
    logits: Tensor,
    margin: float,
    pos_lambda: float,
    neg_lambda: float,
    L: float,
    tau: float,
    per_image: bool,
    group: str | None,
) -> None:
    if group is not None:
        lambdas = {"pos_lambda": pos_lambda, "neg_lambda": neg_lambda}
        arguments = {"margin": margin, **lambdas, "L": L, "tau": tau, "per_image": per_image}
        distributed.check_same_call("dr_loss", arguments, logits, 0, group)


def _sum_scopes(logits: Tensor, targets: Tensor, k: tuple[float, float], per_image: bool, group: str | None) -> Tensor:
    """`reference.tilted_sums` of positives and negatives, [2, 3, S], of all ranks where they share the scope."""
    num_scopes = logits.shape[0] if per_image else 1
    sums = torch.empty(2, 3, num_scopes, dtype=accumulation_dtype(logits), device=logits.device)
    positions = positive_positions(logits, targets, None)
    p = select(logits, positions).sigmoid()
    ends = torch.arange(num_scopes + 1, device=logits.device) * (logits.numel() // max(1, num_scopes))
    sums[0] = reference.tilted_sums(p.new_empty(num_scopes, 0), k[0])
    for some in group_scopes(torch.searchsorted(positions, ends), BLOCK):
        sums[0][:, some.scopes] = reference.tilted_sums(some.of_positives(p, math.inf), k[0])
    for scopes, x, its_targets in _split_scopes(num_scopes, logits, targets):
        of_blocks = [
            reference.tilted_sums(_by_scope(_probabilities(*block), scopes), k[1])
            for block in in_blocks(x, its_targets)
        ]
        sums[1][:, scopes] = reference.add_tilted_sums(torch.stack(of_blocks, -1), k[1])
    if group is None or per_image:
        return sums
    everyone = distributed.gather(sums.view(6, 1), [1] * distributed.world_size(group), group).view(2, 3, -1)
    added = [reference.add_tilted_sums(of_kind, k_of_kind) for of_kind, k_of_kind in zip(everyone, k, strict=True)]
    return torch.stack(added).unsqueeze(-1)


def _split_scopes(num_scopes: int, *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """(a slice of the scopes, what tensors [S, ...] hold for them): a single scope, or as many as make one block."""
    at_once = max(1, BLOCK * num_scopes // max(1, tensors[0].numel()))
    for first in range(0, num_scopes, at_once):
        scopes = slice(first, min(first + at_once, num_scopes))
        yield scopes, *[x if num_scopes == 1 else x[scopes] for x in tensors]


def _by_scope(block: Tensor, scopes: slice) -> Tensor:
    """[G, ...] of the candidates in a block of G scopes."""
    num_scopes = scopes.stop - scopes.start
    return block.view(num_scopes, block.numel() // num_scopes)


def _probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """Of the negatives of a block; -inf elsewhere."""
    return fill_others(clamp_infinities(logits).sigmoid_(), targets, -math.inf)


def _slopes(logits: Tensor, k: float, state: Tensor, upstream: Tensor) -> Tensor:
    """Gradient of logits [...] of one kind, from what `state` [3, ...] keeps of it."""
    coefficient, shift, mean = state
    return coefficient * upstream * reference.tilted_slopes(logits, k, shift, mean)

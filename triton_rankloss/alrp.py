"""aLRP Loss: function, module, operator. The mathematics of its error is in reference/alrp.py."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import dispatch, ranking
from .boxes import generalized_box_iou_loss
from .checks import (
    check_boxes,
    check_logits_and_targets,
    check_number,
    check_per_positive,
    check_positive_int,
    check_ranking,
    group_name,
)
from .distributed import fail_together, join_ranks
from .dtypes import result_dtype
from .module import LossModule
from .reference import alrp as reference, sorted as sorted_engine
from .targets import check_count, positive_positions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ALRPLosses(NamedTuple):
    """The two parts of aLRP Loss, scalars."""

    classification: Tensor
    localization: Tensor


@fail_together
def alrp_loss(
    logits: Tensor,
    targets: Tensor,
    localization_errors: Tensor,
    *,
    delta: float = 1.0,
    eps: float = 1e-5,
    per_image: bool = False,
    group: "ProcessGroup | None" = None,
    max_positives: int | None = None,
) -> ALRPLosses:
    r"""Average localization-recall-precision loss: ranking and localization errors of the positives in one measure.

    For positives i with logits :math:`p_i` and localization errors :math:`e_i`, negatives j with logits :math:`n_j`,

    .. math::
        a_i = 1 + \sum_{k \ne i} H(p_k - p_i), \quad b_i = \sum_j H(n_j - p_i), \quad r_i = a_i + b_i

        \mathrm{classification} = 1 - \frac{1}{|P|} \sum_i \frac{a_i}{r_i}, \qquad
        \mathrm{localization} = \frac{1}{|P|} \sum_i \frac{1}{r_i} \sum_{k: p_k \ge p_i} e_k

    with :math:`H(x) = \mathrm{clip}(x / 2\delta + 1/2, 0, 1)`. The classification part moves the logits by an
    error-driven update, :math:`f_i / |P|` with :math:`f_i = (b_i + \sum_{k \ne i} H(p_k - p_i) e_k) / r_i`, up for
    positive i and down for the negatives above it; errors are constants there. The localization part is
    differentiable in the errors, the ranks being constants there.

    Args:
        logits: scores before any sigmoid, [..., C] or [N], any floating dtype.
        targets: dense, of the shape of `logits` (> 0 positive, 0 negative, -1 ignored), or integer labels of shape
            ``logits.shape[:-1]`` (0..C-1 foreground, C background, -1 ignored).
        localization_errors: :math:`e_i`, [P] in row-major order of the positives; 0 is a perfect box. The paper takes
            the GIoU loss divided by :math:`2 (1 - \tau)`, :math:`\tau = 0.5`; `ALRPLoss` makes them from boxes.
        delta: half width of the step H, in logits; 0 is the hard step :math:`[x \ge 0]`.
        eps: positives with :math:`b_i \le` `eps` get no classification update.
        per_image: rank within each image (first dimension), average over the images that have a positive.
        group: torch.distributed process group whose global batch is ranked, exactly. Every rank takes part with what
            it has, and gets the loss of the group; gradients are multiplied by the number of ranks, so that their
            mean (DistributedDataParallel) is the gradient of that loss. Costs one wait for the host;
            `max_positives` is not used.
        max_positives: upper bound on the number of positives; a GPU then waits for nothing, and the call can be
            captured in a CUDA graph. With more positives than that the loss and all gradients are NaN.

    Returns:
        ``ALRPLosses(classification, localization)``, scalars: float64 for float64 logits, else float32. Without
        positives both are 0, with gradient 0.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    Infinite logits count as finite ones of about :math:`10^{12}`, in every dtype, so that they tie with each other. A
    NaN among the candidates, positive or negative, makes both parts NaN, one among the errors the localization; but
    where nothing is ranked, for want of positives in all or with `per_image` in the image, it changes nothing.

    Source: Oksuz et al., NeurIPS 2020, arXiv 2009.13592, equations 7 to 11 and algorithm 1. Of positives with equal
    scores each counts the errors of all; the published code takes them in the order in which its sort left them.
    """
    check_ranking(delta, per_image, group, max_positives, eps)
    check_logits_and_targets(logits, targets, per_image=per_image)
    check_per_positive("localization_errors", localization_errors, logits)
    bound = max_positives if group is None else None
    losses = _alrp_loss(logits, targets, localization_errors, delta, eps, per_image, bound, group_name(group))
    return ALRPLosses(*losses[:2])


class ALRPLoss(LossModule):
    r"""aLRP Loss with the self-balancing of its paper; see :func:`triton_rankloss.alrp_loss`.

    The localization part comes out multiplied by `localization_weight`, so that the training loss is the plain sum of
    the two parts. The weight starts at `initial_weight` and after every epoch becomes
    (mean localization + mean classification) / mean localization over that epoch. An epoch ends with a call of
    :meth:`end_epoch`, or by itself after `steps_per_epoch` calls in training mode. The weight and the running sums
    are buffers: they are saved in `state_dict` and cost no host synchronization.

    Boxes are turned into the paper's errors, :math:`e = (1 - \mathrm{GIoU}) / (2 (1 - \tau))`.

    Source: Oksuz et al., NeurIPS 2020, arXiv 2009.13592, sections 4 and 5. The published code hard-codes the number of
    iterations in an epoch.
    """

    group: "ProcessGroup | None"
    tau: float
    steps_per_epoch: int | None
    localization_weight: Tensor
    sums: Tensor
    num_steps: Tensor

    def __init__(
        self,
        *,
        delta: float = 1.0,
        eps: float = 1e-5,
        tau: float = 0.5,
        initial_weight: float = 50.0,
        steps_per_epoch: int | None = None,
        per_image: bool = False,
        group: "ProcessGroup | None" = None,
        max_positives: int | None = None,
    ) -> None:
        check_ranking(delta, per_image, group, max_positives, eps)
        check_number("tau", tau, 0, 1, high_open=True)
        check_number("initial_weight", initial_weight, 0)
        check_positive_int("steps_per_epoch", steps_per_epoch)
        super().__init__(
            delta=delta,
            eps=eps,
            tau=tau,
            steps_per_epoch=steps_per_epoch,
            per_image=per_image,
            group=group,
            max_positives=max_positives,
        )
        self.register_buffer("localization_weight", torch.tensor(float(initial_weight)))
        self.register_buffer("sums", torch.zeros(2))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        localization_errors: Tensor | None = None,
        *,
        pred_boxes: Tensor | None = None,
        target_boxes: Tensor | None = None,
    ) -> ALRPLosses:
        """Parts of the loss, from errors [P] or from boxes [P, 4] (x1, y1, x2, y2), in row-major order of positives."""
        errors = _resolve_errors(localization_errors, pred_boxes, target_boxes, self.tau, group=self.group)
        losses = alrp_loss(logits, targets, errors, **self.options("tau", "steps_per_epoch"))
        weighted = ALRPLosses(losses.classification, losses.localization * self.localization_weight)
        if self.training:
            self._observe(losses)
        return weighted

    @torch.no_grad()
    def _observe(self, losses: ALRPLosses) -> None:
        # A model in half precision has cast the buffer, in which a sum would soon stand still.
        self.sums = self.sums.float() + torch.stack(losses).float()
        self.num_steps += 1
        if self.steps_per_epoch is not None:
            self._rebalance(self.num_steps == self.steps_per_epoch)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Set the weight from the epoch that ends now; an epoch without localization errors leaves it as it is."""
        self._rebalance(torch.ones_like(self.num_steps, dtype=torch.bool))

    def _rebalance(self, due: Tensor) -> None:
        classification, localization = self.sums
        weight = ((localization + classification) / localization).to(self.localization_weight.dtype)
        # Buffers are replaced, not written to: the graph of this step may hold the weight it used.
        self.localization_weight = torch.where(due & (localization > 0), weight, self.localization_weight)
        self.sums = torch.where(due, 0, self.sums)
        self.num_steps = torch.where(due, 0, self.num_steps)


@fail_together
def _resolve_errors(
    localization_errors: Tensor | None,
    pred_boxes: Tensor | None,
    target_boxes: Tensor | None,
    tau: float,
    *,
    group: "ProcessGroup | None",
) -> Tensor:
    """Errors as they were given, or of the boxes; `group` is who learns of a failure."""
    if localization_errors is not None and pred_boxes is None and target_boxes is None:
        return localization_errors
    if localization_errors is not None or pred_boxes is None or target_boxes is None:
        raise ValueError("give either localization_errors, or pred_boxes and target_boxes")
    check_boxes("pred_boxes", pred_boxes)
    check_boxes("target_boxes", target_boxes, like=pred_boxes, shape=pred_boxes.shape)
    return generalized_box_iou_loss(pred_boxes, target_boxes) / (2 * (1 - tau))


@torch.library.custom_op("triton_rankloss::alrp_loss", mutates_args=())
def _alrp_loss(
    logits: Tensor,
    targets: Tensor,
    localization_errors: Tensor,
    delta: float,
    eps: float,
    per_image: bool,
    max_positives: int | None,
    group: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(classification, localization, fields of ranking.State with one update, gradient of the errors).

    The last has the shape of `localization_errors`.
    """
    positions = positive_positions(logits, targets, None)
    check_count(localization_errors, positions, "localization_errors")
    ranks = join_ranks(group, "alrp_loss", {"delta": delta, "eps": eps}, logits, positions.numel(), per_image)
    batch = ranking.gather_batch(logits, targets, positions, per_image, ranks)
    errors = ranks.gather_values(localization_errors.to(batch.scores.dtype))

    def error(positives: Tensor, above: Tensor, errors: Tensor) -> ranking.Error:
        *losses, share, weights, grad_errors = reference.alrp_error(positives, above, errors, delta, eps, sorted_engine)
        return ranking.Error(tuple(losses), weights, (-share,), (grad_errors,))

    (classification, localization), state, (grad_errors,) = ranking.rank(batch, delta, max_positives, error, errors)
    return classification, localization, *state, grad_errors


@dispatch.kernel(_alrp_loss)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    from .kernels.ranking import alrp

    return alrp.forward(*arguments)


@_alrp_loss.register_fake
def _(logits: Tensor, targets: Tensor, localization_errors: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    state = ranking.fake_state(logits, arguments, num_losses=2, num_updates=1)
    return *state, torch.empty_like(localization_errors, dtype=result_dtype(logits))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, errors, delta, *_ = inputs
    ranking.save_state(ctx, logits, targets, output[2:], delta)
    ctx.errors_dtype = errors.dtype


def _backward(
    ctx: Any, classification: Tensor | None, localization: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    *saved, grad_errors = ctx.saved_tensors
    of_errors = None
    if localization is not None and ctx.needs_input_grad[2]:
        of_errors = (grad_errors * localization).to(ctx.errors_dtype)
    return ranking.logits_gradient(ctx, saved, classification), None, of_errors, *[None] * 5


_alrp_loss.register_autograd(_backward, setup_context=_setup_context)

"""Rank & Sort Loss: function, module, operator. The mathematics of its errors is in reference/rank_sort.py."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import dispatch, ranking
from .boxes import generalized_box_iou_loss, resolve_iou
from .checks import check_float_tensor, check_logits_and_targets, check_per_positive, check_ranking, group_name
from .distributed import fail_together, join_ranks
from .module import LossModule
from .reference import rank_sort as reference, sorted as sorted_engine
from .targets import positive_positions, values_at_positives

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RankSortLosses(NamedTuple):
    """The two parts of Rank & Sort Loss, scalars."""

    ranking: Tensor
    sorting: Tensor


@fail_together
def rank_sort_loss(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor | None = None,
    *,
    delta: float = 0.5,
    eps: float = 1e-10,
    per_image: bool = False,
    group: "ProcessGroup | None" = None,
    max_positives: int | None = None,
) -> RankSortLosses:
    r"""Rank & Sort loss: positives above negatives, and positives among each other by their IoU.

    For positives i with logits :math:`p_i` and IoU targets :math:`t_i`, negatives j with logits :math:`n_j`,

    .. math::
        r_i = \sum_k H(p_k - p_i), \quad b_i = \sum_j H(n_j - p_i), \quad \mathrm{ranking}_i = \frac{b_i}{r_i + b_i}

        \mathrm{sorting}_i = \frac{\sum_k H(p_k - p_i) (1 - t_k)}{\sum_k H(p_k - p_i)}
            - \frac{\sum_{k: t_k \ge t_i} H(p_k - p_i) (1 - t_k)}{\sum_{k: t_k \ge t_i} H(p_k - p_i)}

    with :math:`H(x) = \mathrm{clip}(x / 2\delta + 1/2, 0, 1)`. Backward is error-driven: the ranking error of a
    positive goes to the negatives above it, its sorting error to the positives above it that have a lower target.

    Args:
        logits: scores before any sigmoid, [..., C] or [N], any floating dtype.
        targets: dense, of the shape of `logits` (> 0 positive, 0 negative, -1 ignored), or integer labels of shape
            ``logits.shape[:-1]`` (0..C-1 foreground, C background, -1 ignored).
        iou: :math:`t_i` in [0, 1], [P] in row-major order of the positives, or one value for every anchor (shape
            ``logits.shape[:-1]``; a shape that could be either is read per anchor). Without it `targets` must be
            dense and floating-point, and a positive's value is its IoU.
        delta: half width of the step H, in logits; 0 is the hard step :math:`[x \ge 0]`.
        eps: positives with :math:`b_i \le` `eps` get no ranking update.
        per_image: rank within each image (first dimension), average over the images that have a positive.
        group: torch.distributed process group whose global batch is ranked, exactly. Every rank takes part with what
            it has, and gets the loss of the group; gradients are multiplied by the number of ranks, so that their
            mean (DistributedDataParallel) is the gradient of that loss. Costs one wait for the host;
            `max_positives` is not used.
        max_positives: upper bound on the number of positives; a GPU then waits for nothing, and the call can be
            captured in a CUDA graph. With more positives than that the loss and all gradients are NaN.

    Returns:
        ``RankSortLosses(ranking, sorting)``, scalars: means over the positives; float64 for float64 logits, else
        float32. Without positives both are 0, with gradient 0.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    Infinite logits count as finite ones of about :math:`10^{12}`, in every dtype, so that they tie with each other. A
    NaN positive makes both parts NaN, a NaN negative the ranking alone, for positives are sorted among each other, and
    a NaN IoU the sorting; but where nothing is ranked, for want of positives in all or with `per_image` in the image, a
    NaN changes nothing.

    Source: Oksuz et al., ICCV 2021, arXiv 2107.11669, equations 6 to 12. Upstream gradients of the two parts are
    honoured separately; the published code ignores that of the second.
    """
    check_ranking(delta, per_image, group, max_positives, eps)
    check_logits_and_targets(logits, targets, per_image=per_image)
    if iou is not None:
        check_per_positive("iou", iou, logits, per_anchor=True)
    elif targets.shape != logits.shape or not targets.dtype.is_floating_point:
        raise ValueError(
            "iou must be given unless targets are dense and floating-point, with the IoU of the positives; got targets "
            f"of shape {tuple(targets.shape)} and {targets.dtype}"
        )
    bound = max_positives if group is None else None
    losses = _rank_sort_loss(logits, targets, iou, delta, eps, per_image, bound, group_name(group))
    return RankSortLosses(*losses[:2])


class RankSortBoxLosses(NamedTuple):
    """The parts of Rank & Sort Loss and its balanced box loss, scalars."""

    ranking: Tensor
    sorting: Tensor
    box: Tensor


class RankSortLoss(LossModule):
    """Rank & Sort Loss; see :func:`triton_rankloss.rank_sort_loss`.

    Called with boxes it takes the IoU of each pair as target, and returns beside its two parts the mean GIoU loss,
    multiplied by `box_weight` = (ranking + sorting) / box, a constant in backward, so that both tasks weigh the same
    and the training loss is the plain sum of the parts. The last weight is kept in a buffer.

    Source: Oksuz et al., ICCV 2021, arXiv 2107.11669, section 4.3 (task balancing). The published heads weigh each box
    loss by the score of its positive.
    """

    group: "ProcessGroup | None"
    box_weight: Tensor

    def __init__(
        self,
        *,
        delta: float = 0.5,
        eps: float = 1e-10,
        per_image: bool = False,
        group: "ProcessGroup | None" = None,
        max_positives: int | None = None,
    ) -> None:
        check_ranking(delta, per_image, group, max_positives, eps)
        super().__init__(delta=delta, eps=eps, per_image=per_image, group=group, max_positives=max_positives)
        self.register_buffer("box_weight", torch.ones(()))

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        iou: Tensor | None = None,
        *,
        pred_boxes: Tensor | None = None,
        target_boxes: Tensor | None = None,
    ) -> RankSortLosses | RankSortBoxLosses:
        """Parts of the loss; with boxes [P, 4] (x1, y1, x2, y2), in row-major order of the positives, three of them."""
        if pred_boxes is not None or target_boxes is not None:
            iou = _resolve_iou(logits, iou, pred_boxes, target_boxes, group=self.group)
        losses = rank_sort_loss(logits, targets, iou, **self.options())
        if pred_boxes is None or target_boxes is None:
            return losses
        box = generalized_box_iou_loss(pred_boxes, target_boxes, reduction="mean")
        with torch.no_grad():
            weight = (losses.ranking + losses.sorting) / box
            weight = torch.where(box > 0, weight, self.box_weight).to(self.box_weight.dtype)
            if self.training:
                self.box_weight = weight
        return RankSortBoxLosses(losses.ranking, losses.sorting, box * weight)


@fail_together
def _resolve_iou(
    logits: Tensor,
    iou: Tensor | None,
    pred_boxes: Tensor | None,
    target_boxes: Tensor | None,
    *,
    group: "ProcessGroup | None",
) -> Tensor:
    """`resolve_iou`; `group` is who learns of a failure."""
    check_float_tensor("logits", logits)
    return resolve_iou(iou, pred_boxes, target_boxes, logits)[0]


@torch.library.custom_op("triton_rankloss::rank_sort_loss", mutates_args=())
def _rank_sort_loss(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor | None,
    delta: float,
    eps: float,
    per_image: bool,
    max_positives: int | None,
    group: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(ranking, sorting, fields of ranking.State with two updates)."""
    positions = positive_positions(logits, targets, None)
    own_iou = targets.reshape(-1)[positions] if iou is None else values_at_positives(iou, logits, positions, "iou")
    ranks = join_ranks(group, "rank_sort_loss", {"delta": delta, "eps": eps}, logits, positions.numel(), per_image)
    batch = ranking.gather_batch(logits, targets, positions, per_image, ranks)
    all_iou = ranks.gather_values(own_iou.to(batch.scores.dtype))

    def error(positives: Tensor, above: Tensor, iou: Tensor) -> ranking.Error:
        ranking_error, share, weights = reference.ranking_error(positives, above, delta, eps, sorted_engine)
        sorting_error, update = reference.sorting_error(positives, iou, delta)
        return ranking.Error((ranking_error, sorting_error), weights, (-share, update))

    (mean_ranking, mean_sorting), state, _ = ranking.rank(batch, delta, max_positives, error, all_iou)
    return mean_ranking, mean_sorting, *state


@dispatch.kernel(_rank_sort_loss)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    from .kernels.ranking import rank_sort

    return rank_sort.forward(*arguments)


@_rank_sort_loss.register_fake
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return ranking.fake_state(logits, arguments, num_losses=2, num_updates=2)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, _, delta, *_ = inputs
    ranking.save_state(ctx, logits, targets, output[2:], delta)


def _backward(ctx: Any, mean_ranking: Tensor | None, mean_sorting: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return ranking.logits_gradient(ctx, ctx.saved_tensors, mean_ranking, mean_sorting), *[None] * 7


_rank_sort_loss.register_autograd(_backward, setup_context=_setup_context)

"""Rank & Sort Loss."""

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ..checks import check_logits_and_targets, check_max_positives, check_number, check_per_positive, group_name
from ..ops import rank_sort as ops

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RankSortLosses(NamedTuple):
    """The two parts of Rank & Sort Loss, scalars."""

    ranking: Tensor
    sorting: Tensor


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
            captured in a CUDA graph. With more positives than that the loss is NaN.

    Returns:
        ``RankSortLosses(ranking, sorting)``, scalars: means over the positives; float64 for float64 logits, else
        float32. Without positives both are 0, with gradient 0.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    Infinite logits count as the largest finite ones; a NaN among the candidates makes the loss NaN.

    Source: Oksuz et al., ICCV 2021, arXiv 2107.11669, equations 6 to 12. Upstream gradients of the two parts are
    honoured separately; the published code ignores that of the second.
    """
    check_logits_and_targets(logits, targets, per_image=per_image)
    if iou is not None:
        check_per_positive("iou", iou, logits, per_anchor=True)
    elif targets.shape != logits.shape or not targets.dtype.is_floating_point:
        raise ValueError(
            "iou must be given unless targets are dense and floating-point, with the IoU of the positives; got targets "
            f"of shape {tuple(targets.shape)} and {targets.dtype}"
        )
    check_number("delta", delta, 0)
    check_number("eps", eps, 0)
    check_max_positives(max_positives)
    bound, name = (max_positives if group is None else None), group_name(group)
    return RankSortLosses(*ops.rank_sort_loss(logits, targets, iou, delta, eps, per_image, bound, name)[:2])

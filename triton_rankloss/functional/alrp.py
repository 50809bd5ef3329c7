"""aLRP Loss."""

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from ..checks import check_logits_and_targets, check_max_positives, check_number, check_per_positive, group_name
from ..ops import alrp as ops

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ALRPLosses(NamedTuple):
    """The two parts of aLRP Loss, scalars."""

    classification: Tensor
    localization: Tensor


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
            captured in a CUDA graph. With more positives than that the loss is NaN.

    Returns:
        ``ALRPLosses(classification, localization)``, scalars: float64 for float64 logits, else float32. Without
        positives both are 0, with gradient 0.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    Infinite logits count as the largest finite ones; a NaN among the candidates makes both parts NaN.

    Source: Oksuz et al., NeurIPS 2020, arXiv 2009.13592, equations 7 to 11 and algorithm 1. Of positives with equal
    scores each counts the errors of all; the published code takes them in the order in which its sort left them.
    """
    check_logits_and_targets(logits, targets, per_image=per_image)
    check_per_positive("localization_errors", localization_errors, logits)
    check_number("delta", delta, 0)
    check_number("eps", eps, 0)
    check_max_positives(max_positives)
    bound, name = (max_positives if group is None else None), group_name(group)
    return ALRPLosses(*ops.alrp_loss(logits, targets, localization_errors, delta, eps, per_image, bound, name)[:2])

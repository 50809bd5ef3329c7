"""DR Loss."""

import math
from typing import TYPE_CHECKING

from torch import Tensor

from ..checks import check_bool, check_logits_and_targets, check_number, group_name
from ..ops import dr as ops

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


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

    An infinite logit has probability 0 or 1, and gradient 0; a NaN among the candidates makes the loss NaN.

    Source: Qian et al., CVPR 2020, arXiv 1907.10156. Values are those of the published code, which makes one-hot
    tensors of the size of the logits and has no per-image form.
    """
    check_logits_and_targets(logits, targets, per_image=per_image)
    check_parameters(margin, pos_lambda, neg_lambda, L, tau, per_image)
    return ops.dr_loss(logits, targets, margin, pos_lambda, neg_lambda, L, tau, per_image, group_name(group))[0]


def check_parameters(
    margin: float, pos_lambda: float, neg_lambda: float, L: float, tau: float, per_image: bool
) -> None:
    """Errors that name the argument."""
    check_number("margin", margin, 0)
    check_number("pos_lambda", pos_lambda, 0, low_open=True)
    check_number("neg_lambda", neg_lambda, 0, low_open=True)
    check_number("L", L, 0, low_open=True)
    check_number("tau", tau, 0, low_open=True)
    check_bool("per_image", per_image)

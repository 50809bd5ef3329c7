"""AP Loss: function, module, operator. The mathematics of its error is in reference/ap.py."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import dispatch, ranking
from .checks import check_bool, check_logits_and_targets, check_ranking, group_name
from .distributed import fail_together, join_ranks
from .module import LossModule
from .reference import ap as reference, sorted as sorted_engine
from .targets import positive_positions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@fail_together
def ap_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    delta: float = 1.0,
    interpolate: bool = True,
    per_image: bool = False,
    group: "ProcessGroup | None" = None,
    max_positives: int | None = None,
) -> Tensor:
    r"""Average-precision loss: one minus the mean precision at the positives.

    For positives i with logits :math:`p_i` and negatives j with logits :math:`n_j`,

    .. math::
        a_i = 1 + \sum_{k \ne i} H(p_k - p_i), \quad b_i = \sum_j H(n_j - p_i), \quad
        \mathrm{loss} = 1 - \frac{1}{|P|} \sum_i q_i

    with :math:`H(x) = \mathrm{clip}(x / 2\delta + 1/2, 0, 1)` and :math:`q_i` the running maximum of the precision
    :math:`a_i / (a_i + b_i)` over positives in ascending order of score. Backward is the error-driven update of the
    paper: every positive is pushed up by its error :math:`(1 - q_i) / |P|`, and the negatives ranked above it are
    pushed down by the same amount in total, shared in proportion to :math:`H(n_j - p_i)`.

    Args:
        logits: scores before any sigmoid, [..., C] or [N], any floating dtype.
        targets: dense, of the shape of `logits` (> 0 positive, 0 negative, -1 ignored), or integer labels of shape
            ``logits.shape[:-1]`` (0..C-1 foreground, C background, -1 ignored).
        delta: half width of the step H, in logits; 0 is the hard step :math:`[x \ge 0]`.
        interpolate: take the running maximum of the precision, as the paper does.
        per_image: rank within each image (first dimension), average over the images that have a positive.
        group: torch.distributed process group whose global batch is ranked, exactly. Every rank takes part with what
            it has, and gets the loss of the group; gradients are multiplied by the number of ranks, so that their
            mean (DistributedDataParallel) is the gradient of that loss. Costs one wait for the host;
            `max_positives` is not used.
        max_positives: upper bound on the number of positives; a GPU then waits for nothing, and the call can be
            captured in a CUDA graph. With more positives than that the loss and all gradients are NaN.

    Returns:
        A scalar in [0, 1]: float64 for float64 logits, else float32. Without positives 0, with gradient 0.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    Infinite logits count as finite ones of about :math:`10^{12}`, in every dtype, so that they tie with each other. A
    NaN among the candidates makes the loss NaN; but where nothing is ranked, for want of positives in all or with
    `per_image` in the image, it changes nothing.

    Source: Chen et al., CVPR 2019, arXiv 1904.06373, equations 3 to 8; TPAMI 2020, arXiv 2008.07294. The published
    code loops over positives, is undefined without any and overflows in half precision; values are the same.
    """
    _check_parameters(delta, interpolate, per_image, group, max_positives)
    check_logits_and_targets(logits, targets, per_image=per_image)
    bound = max_positives if group is None else None
    return _ap_loss(logits, targets, delta, interpolate, per_image, bound, group_name(group))[0]


class APLoss(LossModule):
    """See :func:`triton_rankloss.ap_loss`."""

    def __init__(
        self,
        *,
        delta: float = 1.0,
        interpolate: bool = True,
        per_image: bool = False,
        group: "ProcessGroup | None" = None,
        max_positives: int | None = None,
    ) -> None:
        _check_parameters(delta, interpolate, per_image, group, max_positives)
        super().__init__(
            delta=delta, interpolate=interpolate, per_image=per_image, group=group, max_positives=max_positives
        )

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of logits [..., C] or [N] with dense targets or labels."""
        return ap_loss(logits, targets, **self.options())


def _check_parameters(
    delta: float, interpolate: bool, per_image: bool, group: "ProcessGroup | None", max_positives: int | None
) -> None:
    check_ranking(delta, per_image, group, max_positives)
    check_bool("interpolate", interpolate)


@torch.library.custom_op("triton_rankloss::ap_loss", mutates_args=())
def _ap_loss(
    logits: Tensor,
    targets: Tensor,
    delta: float,
    interpolate: bool,
    per_image: bool,
    max_positives: int | None,
    group: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, fields of ranking.State with one update)."""

    def error(positives: Tensor, above: Tensor) -> ranking.Error:
        found, weights = reference.ap_error(positives, above, delta, interpolate, sorted_engine)
        return ranking.Error((found,), weights, (-found,))

    positions = positive_positions(logits, targets, None)
    arguments = {"delta": delta, "interpolate": interpolate}
    ranks = join_ranks(group, "ap_loss", arguments, logits, positions.numel(), per_image)
    batch = ranking.gather_batch(logits, targets, positions, per_image, ranks)
    losses, state, _ = ranking.rank(batch, delta, max_positives, error)
    return losses[0], *state


@dispatch.kernel(_ap_loss)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    from .kernels.ranking import ap

    return ap.forward(*arguments)


@_ap_loss.register_fake
def _(logits: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return ranking.fake_state(logits, arguments, num_losses=1, num_updates=1)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, targets, delta, *_ = inputs
    ranking.save_state(ctx, logits, targets, output[1:], delta)


def _backward(ctx: Any, loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return ranking.logits_gradient(ctx, ctx.saved_tensors, loss), *[None] * 6


_ap_loss.register_autograd(_backward, setup_context=_setup_context)

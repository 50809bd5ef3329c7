"""Statistics of a ranking, for logs: out of what the loss has kept for backward, without a second pass."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .dtypes import accumulation_dtype
from .ranking import below_all
from .reference import sorted as sorted_engine
from .reference.ap import rank_among_positives
from .scopes import group_scopes
from .targets import BLOCK


class RankingStatistics(NamedTuple):
    """How a batch is ranked; see `ranking_statistics`."""

    num_positives: int
    mean_precision: Tensor
    worst_rank: Tensor
    negatives_above: Tensor
    class_precision: Tensor


@torch.no_grad()
def ranking_statistics(loss: Tensor) -> RankingStatistics:
    r"""How the batch is ranked that an AP, aLRP or Rank & Sort Loss was just computed for.

    A loss costs the same whether this is called or not. It reads the scores of the positives and the number of
    negatives above each, :math:`b_i`, out of what the loss keeps for backward, so it must be called before backward.
    With :math:`a_i = 1 + \sum_{k \ne i} H(p_k - p_i)` the rank of a positive is :math:`a_i + b_i`, its precision
    :math:`a_i / (a_i + b_i)`; H is that of the loss, so that close scores count in part.

    Args:
        loss: what `ap_loss`, `alrp_loss` (classification) or `rank_sort_loss` (either part), or their modules,
            returned, itself: not a sum or a multiple, nor from inside `torch.compile`.

    Returns:
        ``RankingStatistics(num_positives, mean_precision, worst_rank, negatives_above, class_precision)``:

        - num_positives: of the whole group, if the loss was given one.
        - mean_precision: without interpolation; for `per_image` the mean over the images that have a positive. NaN
          without positives, and so are the next two.
        - worst_rank: the largest rank of a positive (for `per_image`, within its image).
        - negatives_above: the largest :math:`b_i`, the number of negatives above the lowest positive. For aLRP and
          Rank & Sort Loss a number of at most `eps` reads 0.
        - class_precision: [C], the mean precision of the positives of each class, ranked among all classes as the loss
          does; NaN for a class without any. With a group, of the positives of this rank. [1] for logits [N].

    Raises:
        TypeError: `loss` is not a tensor.
        ValueError: `loss` was not computed by one of these losses from logits that require a gradient.
        RuntimeError: backward has freed what the loss kept.

    Costs O(|P| log |P|) and a few waits for the host.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss must be a tensor; got {type(loss).__name__}")
    node: Any = loss.grad_fn
    if node is None or "triton_rankloss" not in node.name() or not hasattr(node, "delta"):
        raise ValueError(
            "loss must be what ap_loss, alrp_loss (classification) or rank_sort_loss returned for logits that require "
            f"a gradient, itself; got a tensor from {'no differentiable operation' if node is None else node.name()}"
        )
    saved: Any = node  # torch's type of a node lacks its saved tensors
    logits, _, positions, scores, weights, updates, offsets = saved.saved_tensors[:7]
    num_positives = int(offsets[-1])
    dtype = accumulation_dtype(logits)
    scores, weights = scores[:num_positives].to(dtype), weights[:num_positives].to(dtype)
    # Negative j receives sum_i w_i H(n_j - p_i), all of them as much as the positives get: update_i = -w_i b_i.
    above = torch.where(weights == 0, 0, -updates[0, :num_positives].to(dtype) / weights)
    among = torch.empty_like(above)
    for group in group_scopes(offsets, BLOCK):
        found = rank_among_positives(
            group.of_positives(scores, below_all(scores, node.delta)), node.delta, sorted_engine
        )
        group.put(found, among)
    precision = among / (among + above)
    sizes = offsets.diff()
    nan = precision.new_tensor(torch.nan)
    return RankingStatistics(
        num_positives,
        ((precision / sizes.repeat_interleave(sizes)).sum() / (sizes > 0).sum()).to(loss.dtype),
        (among + above).max().to(loss.dtype) if num_positives else nan.to(loss.dtype),
        above.max().to(loss.dtype) if num_positives else nan.to(loss.dtype),
        _mean_by_class(precision, positions[:num_positives], logits).to(loss.dtype),
    )


def _mean_by_class(precision: Tensor, positions: Tensor, logits: Tensor) -> Tensor:
    num_classes = logits.shape[-1] if logits.dim() > 1 else 1
    own = positions >= 0
    classes = positions[own] % max(1, num_classes)
    totals = precision.new_zeros(num_classes).index_add_(0, classes, precision[own])
    return totals / torch.bincount(classes, minlength=num_classes)

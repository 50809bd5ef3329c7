"""What is ranked together, what the ranking leaves for backward, and what a process group adds to both.

A scope is one image or everything; with a group, everything on all its ranks. Then a rank counts its own negatives
against the positives of all, a sum over the ranks completes the counts, and each rank moves its own logits.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import distributed
from .blocks import blocks
from .ranking import Count, Transport
from .targets import accumulation_dtype, negative_mask, positive_positions, result_dtype

LARGEST_SCORE = 2.0**40  # scores beyond count as this: so large, p - delta and p + delta still differ in float64


class Scope(NamedTuple):
    """The candidates that are ranked against each other."""

    positions: Tensor  # [P] flat positions of the positives in the logits, -1 for those on other ranks
    positives: Tensor  # [P] their scores p_i
    logits: Tensor  # of this rank, positives, negatives and ignored
    targets: Tensor
    group: str | None  # whose ranks hold the other negatives


class Batch(NamedTuple):
    """The scopes of a call, and the group that takes part in it."""

    scopes: list[Scope]
    group: str | None
    rank_sizes: list[int]  # number of positives on each of its ranks


class Ranking(NamedTuple):
    """Losses, and the O(|P|) state from which backward makes the gradient of every logit."""

    losses: Tensor  # [L]
    positions: Tensor  # [P] flat positions of the positives in the logits, -1 for those on other ranks
    scores: Tensor  # [P] p_i
    weights: Tensor  # [P] w_i: negative j receives sum_i w_i H(n_j - p_i), times the upstream gradient of losses[0]
    updates: Tensor  # [K, P]: what positive i receives, times the upstream gradients of the first K losses
    offsets: Tensor  # [S + 1]: positives offsets[s]:offsets[s + 1] belong to scope s


def split(
    logits: Tensor, targets: Tensor, delta: float, per_image: bool, group: str | None, loss: str, **options: float
) -> Batch:
    """The scopes of a call; the ranks of a group must agree on the loss and all that shapes it."""
    images = list(zip(logits, targets, strict=True)) if per_image and len(logits) > 0 else [(logits, targets)]
    found = [positive_positions(*image) for image in images]
    rank_sizes = []
    if group is not None:
        arguments = {"delta": delta, "per_image": per_image, **options}
        rank_sizes = distributed.agree(loss, arguments, logits, sum(p.numel() for p in found), group)
    scopes = []
    for i, ((image_logits, image_targets), positions) in enumerate(zip(images, found, strict=True)):
        positives = finite(image_logits.reshape(-1)[positions]).to(accumulation_dtype(logits))
        positions = positions + i * image_logits.numel()
        if group is not None and not per_image:
            positives = distributed.gather(positives.unsqueeze(0), rank_sizes, group)[0]
            positions = distributed.own_positions(positions, rank_sizes, group)
        scopes.append(Scope(positions, positives, image_logits, image_targets, None if per_image else group))
    return Batch(scopes, group, rank_sizes)


def finite(scores: Tensor) -> Tensor:
    """Scores with the infinities of an overflow made very large numbers, which have differences."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return scores.clamp(-LARGEST_SCORE, LARGEST_SCORE)


def relevant_negatives(
    logits: Tensor, targets: Tensor, positives: Tensor, delta: float
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(flat start, logits [M], mask of the negatives that some positive can see [M]) of each block of logits.

    NaN counts as seen, so that it reaches the loss.
    """
    if positives.numel() == 0 or logits.numel() == 0:
        return
    lowest = positives.min() - delta
    lowest = torch.where(lowest < -LARGEST_SCORE, -torch.inf, lowest)  # among scores not yet made finite
    for start, block, block_targets in blocks(logits, targets):
        scores = (block if block.dtype == torch.float64 else block.float()).reshape(-1)
        mask = ~(scores < lowest)
        mask &= negative_mask(block, block_targets).reshape(-1)
        yield start, scores, mask


def most(mask: Tensor) -> bool:
    """Whether it costs less to work on everything than to pick what is in the mask, judged by a sample of it."""
    sample = mask[::61]  # a prime, so that it meets all classes alike
    return 2 * int(sample.count_nonzero()) > sample.numel()


def own_positions(batch: Batch) -> Tensor:
    """Flat positions of the positives in the logits of this rank, row-major."""
    positions = torch.cat([scope.positions for scope in batch.scopes])
    return positions if batch.group is None else positions[positions >= 0]


def values_by_scope(values: Tensor, batch: Batch) -> list[Tensor]:
    """Values of the positives of every scope, from those of this rank, in the dtype of the scores."""
    values = values.to(batch.scopes[0].positives.dtype)
    group = batch.scopes[0].group
    if group is not None:
        values = distributed.gather(values.unsqueeze(0), batch.rank_sizes, group)[0]
    return list(values.split([scope.positives.numel() for scope in batch.scopes]))


def negatives_above(scope: Scope, delta: float) -> Tensor:
    """b_i: how many negatives of the scope, on all ranks, are ranked above each positive."""
    counted = Count(scope.positives, delta, result_dtype(scope.logits))
    for _, scores, mask in relevant_negatives(scope.logits, scope.targets, scope.positives, delta):
        if most(mask):
            counted.add(finite(scores), mask=mask)
        else:
            counted.add(finite(scores[mask]))
    above = counted.above()
    return above if scope.group is None else distributed.total(above, scope.group)


def mean_factor(batch: Batch) -> float:
    """What turns a sum over scopes into the mean over those, on all ranks, that have a positive."""
    ranked = torch.tensor(float(sum(scope.positives.numel() > 0 for scope in batch.scopes)))
    if batch.group is not None and batch.scopes[0].group is None:
        ranked = distributed.total(ranked.to(batch.scopes[0].positives.device), batch.group)
    return 1 / max(1.0, ranked.item())


def combine(batch: Batch, terms: list[tuple[Tensor, Tensor, Tensor]], like: Tensor) -> Ranking:
    """Mean of the (losses [L], weights [P], updates [K, P]) of the scopes that have a positive.

    Every rank of a group gets the loss of the group. Gradients are multiplied by the number of ranks: their mean over
    the ranks, which data-parallel training takes, is then the gradient of that loss.
    """
    dtype, factor = result_dtype(like), mean_factor(batch)
    scopes = batch.scopes
    losses = torch.stack([loss for loss, _, _ in terms]).sum(0) * factor
    if batch.group is not None:
        losses = losses if scopes[0].group is not None else distributed.total(losses, batch.group)
        factor *= len(batch.rank_sizes)
    sizes = torch.tensor([0] + [scope.positions.numel() for scope in scopes], device=like.device)
    return Ranking(
        losses.to(dtype),
        torch.cat([scope.positions for scope in scopes]),
        torch.cat([scope.positives for scope in scopes]).to(dtype),
        (torch.cat([weights for _, weights, _ in terms]) * factor).to(dtype),
        (torch.cat([updates for _, _, updates in terms], dim=1) * factor).to(dtype),
        sizes.cumsum(0),
    )


def own_gradient(gradient: Tensor, batch: Batch) -> Tensor:
    """The part [P] for the positives of this rank of a gradient summed over scopes, scaled as in `combine`."""
    gradient = gradient * mean_factor(batch)
    if batch.group is None:
        return gradient
    if batch.scopes[0].group is not None:
        gradient = gradient[distributed.own_slice(batch.rank_sizes, batch.group)]
    return gradient * len(batch.rank_sizes)


def pad_to_bound(ranking: Ranking, max_positives: int | None) -> Ranking:
    """The state at the size of the caller's bound on the number of positives; beyond it the losses are NaN.

    This path has counted the positives and needs no bound: it does what the contract says of one.
    """
    if max_positives is None:
        return ranking
    missing = max_positives - ranking.positions.numel()
    nan = torch.nan if missing < 0 else 0
    return Ranking(
        ranking.losses + nan,
        pad(ranking.positions, (0, missing)),
        pad(ranking.scores, (0, missing)),
        pad(ranking.weights, (0, missing)) + nan,
        pad(ranking.updates, (0, missing)),
        ranking.offsets.clamp(max=max_positives),
    )


def transport_to_logits(
    logits: Tensor, targets: Tensor, upstream: Tensor, positions: Tensor, scores: Tensor, weights: Tensor,
    updates: Tensor, offsets: Tensor, delta: float,
) -> Tensor:  # fmt: skip
    """Gradient of every logit, in its dtype, from the state of `Ranking` and the upstream gradients [K]."""
    dtype = accumulation_dtype(logits)
    upstream = upstream.to(dtype)
    weights = weights.to(dtype) * upstream[0]
    gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format)
    bounds = offsets.tolist()
    for scope, (first, last) in enumerate(pairwise(bounds)):
        if first == last:
            continue
        image = (scope,) if len(bounds) > 2 else ()
        positives, of_scope = scores[first:last].to(dtype), gradient[image].view(-1)
        carried = Transport(positives, weights[first:last], delta, result_dtype(logits))
        for start, block, mask in relevant_negatives(logits[image], targets[image], positives, delta):
            if most(mask):
                received = torch.where(mask, carried(finite(block)), 0)
                of_scope[start : start + mask.numel()] = received.to(gradient.dtype)
            else:
                found = mask.nonzero().squeeze(1)
                of_scope[start + found] = carried(finite(block[found])).to(gradient.dtype)
    own = positions[: bounds[-1]] >= 0
    updates = (upstream @ updates.to(dtype))[: bounds[-1]]
    gradient.view(-1)[positions[: bounds[-1]][own]] = updates[own].to(gradient.dtype)
    return gradient

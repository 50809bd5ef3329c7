"""What AP, aLRP and Rank & Sort Loss share: count on the reference, the state they keep, and transport in backward.

A scope is what is ranked together: an image, or everything; with a process group, everything on all its ranks. Then a
rank counts its own negatives against the positives of all, a sum over the ranks completes the counts, and each rank
moves its own logits. What a loss does with the counts of a scope is its own, and stands in reference/<loss>.py.

Each loss is one operator that returns its losses and an O(|P|) state; the gradient of the logits is made from that
state in backward, scaled by the upstream gradient before it is rounded to their dtype.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import dispatch
from .distributed import Ranks
from .dtypes import accumulation_dtype, result_dtype
from .reference import sorted as sorted_engine
from .scopes import Group, group_scopes
from .targets import are_labels, are_negative, negative_mask, positive_positions

LARGEST_SCORE = 2.0**40  # scores beyond count as this: so large, p - delta and p + delta still differ in float64
# Logits that are looked through, and negatives that are counted, at a time: temporaries that fit in caches, and memory
# that is small beside a gradient. With four times as many AP Loss took twice as long where all negatives matter.
LOGITS_AT_ONCE = 2**19
NEGATIVES_AT_ONCE = 2**17
SCOPES_AT_ONCE = 2**18  # logits of scopes side by side: twice or half as many took up to 1.4 times as long


class Batch(NamedTuple):
    """Candidates of this rank, and the positives that they are ranked with."""

    logits: Tensor
    targets: Tensor
    positions: Tensor  # int64 [P]: where the positives are in the logits, flat, row-major; -1 for those on other ranks
    scores: Tensor  # [P] p_i
    offsets: Tensor  # int64 [S + 1]: positives offsets[s]:offsets[s + 1] belong to scope s
    ranks: Ranks


class Error(NamedTuple):
    """What a loss makes of positives and the number of negatives above each, [..., P] all; |P| times what they add."""

    losses: tuple[Tensor, ...]
    weights: Tensor  # w_i: negative j receives sum_i w_i H(n_j - p_i), times the upstream gradient of the first loss
    updates: tuple[Tensor, ...]  # what positive i receives, times the upstream gradients of the first losses
    besides: tuple[Tensor, ...] = ()  # further gradients


class State(NamedTuple):
    """What backward needs; P is the number of positives, or the caller's bound on it."""

    positions: Tensor
    scores: Tensor
    weights: Tensor
    updates: Tensor  # [K, P]
    offsets: Tensor
    # What the kernels of transport look up (kernels/ranking/kinks.py, finish.py); the reference keeps nothing here.
    lines: Tensor
    cells: Tensor


def gather_batch(logits: Tensor, targets: Tensor, positions: Tensor, per_image: bool, ranks: Ranks) -> Batch:
    """Split the positives at flat `positions` into scopes; fetch those of the other ranks, if they share the scope."""
    num_scopes = max(1, logits.shape[0]) if per_image else 1
    scores = clamp_scores(logits.reshape(-1)[positions])
    if ranks.shared:
        offsets = positions.new_tensor([0, sum(ranks.sizes)])
        return Batch(logits, targets, ranks.gather_positions(positions), ranks.gather_values(scores), offsets, ranks)
    ends = torch.arange(num_scopes + 1, device=logits.device) * (logits.numel() // num_scopes)
    return Batch(logits, targets, positions, scores, torch.searchsorted(positions, ends), ranks)


def rank(
    batch: Batch,
    delta: float,
    max_positives: int | None,
    error: Callable[..., Error],
    *values: Tensor,
) -> tuple[tuple[Tensor, ...], State, tuple[Tensor, ...]]:
    """Count in every scope, call `error`, and average over the scopes that have a positive: the reference's forward.

    `error` is given the positives p [G, P] of G scopes, the negatives above each, b [G, P], and their own of `values`.
    Where a scope has fewer than P, what is found for the rest is dropped: they lie below all, under infinitely many.
    Returns (losses, state, what `error` found besides, for the positives of this rank).
    """
    num_positives = batch.offsets.diff()
    low = below_all(batch.scores, delta)
    parts: tuple[Tensor, ...] = ()
    for group in scopes_at_once(batch.logits, batch.offsets):
        positives = group.of_positives(batch.scores, low)
        above = batch.ranks.total_count(_count_negatives(batch.logits, batch.targets, group, positives, delta))
        if group.there is not None:
            above.masked_fill_(~group.there, torch.inf)
        found = error(positives, above, *[group.of_positives(value, -LARGEST_SCORE) for value in values])
        fields = found.losses, (found.weights,), found.updates, found.besides
        parts = parts or tuple(batch.scores.new_empty(len(field), batch.scores.numel()) for field in fields)
        for part, field in zip(parts, fields, strict=True):
            for all_positives, own in zip(part, field, strict=True):
                group.put(own, all_positives)
    share = 1 / (num_positives * (num_positives > 0).sum()).to(batch.scores.dtype)
    if share.numel() > 1:
        share = share.repeat_interleave(num_positives)
    losses, (weights,), updates, besides = (part * share for part in parts)
    sums = batch.ranks.mean_over_scopes([loss.sum() for loss in losses], [weights, updates, besides], batch.offsets)

    dtype = result_dtype(batch.logits)
    scores, nothing = batch.scores.to(dtype), (weights.new_empty(0, dtype=dtype), batch.positions.new_empty(0).int())
    state = State(batch.positions, scores, weights.to(dtype), updates.to(dtype), batch.offsets, *nothing)
    sums = [loss.to(dtype) for loss in sums]
    if max_positives is not None:
        sums, state = pad_to_bound(sums, state, max_positives)
    return tuple(sums), state, tuple(batch.ranks.own_values(part).to(dtype) for part in besides)


def scopes_at_once(logits: Tensor, offsets: Tensor) -> Iterator[Group]:
    """The scopes of `logits` that are ranked side by side."""
    return group_scopes(offsets, min(SCOPES_AT_ONCE, LOGITS_AT_ONCE) * (offsets.numel() - 1) // max(1, logits.numel()))


def below_all(scores: Tensor, delta: float) -> Tensor:
    """A score so low that it counts for none of `scores`, and no lower than that: kinks are looked up in a grid."""
    lowest = scores.nan_to_num().amin() if scores.numel() > 0 else scores.new_zeros(())
    return (lowest - 3 * delta).nextafter(lowest - torch.inf)


def clamp_scores(scores: Tensor) -> Tensor:
    """Scores in float64, with the infinities of an overflow made very large numbers, which have differences."""
    return scores.to(accumulation_dtype(scores)).clamp(-LARGEST_SCORE, LARGEST_SCORE)


def _count_negatives(logits: Tensor, targets: Tensor, group: Group, positives: Tensor, delta: float) -> Tensor:
    """b [G, P]: how many negatives of the same scope, on this rank, are ranked above each positive."""
    above = torch.zeros_like(positives) + 0 * positives.sum(-1, keepdim=True)  # NaN reaches all, without negatives too
    kinks = sorted_engine.sort_kinks(positives, delta)
    for negatives in relevant_negatives(logits, targets, group, positives, delta):
        masses = None if negatives.there is None else negatives.there.to(above.dtype)
        above += sorted_engine.count(negatives.scores, positives, delta, masses, kinks)
    return above


class Negatives(NamedTuple):
    """Negatives of each of G scopes that some positive can see, padded to N of each."""

    block: slice  # of the flat logits of these scopes
    positions: Tensor  # of all, in this block, flat
    scores: Tensor  # [G, N]
    there: Tensor | None  # bool [G, N]; None where nothing is padded


def relevant_negatives(
    logits: Tensor, targets: Tensor, group: Group, positives: Tensor, delta: float
) -> Iterator[Negatives]:
    """Choose by score first: where few are left, only their targets are looked up.

    NaN counts as seen, so that it reaches the loss.
    """
    if positives.numel() == 0 or logits.numel() == 0:
        return
    logits, targets = (group.of_scopes(x) for x in (logits, targets))
    real = positives if group.there is None else positives.masked_fill(~group.there, torch.inf)
    lowest = real.amin(-1, keepdim=True) - delta
    lowest = torch.where(lowest <= -LARGEST_SCORE, -torch.inf, lowest)  # among scores that are not clamped
    num_scopes, start = positives.shape[0], 0
    for block, block_targets in split_blocks(logits, targets):
        seen = ~(block.reshape(num_scopes, -1) < lowest.to(block.dtype)).view(block.shape)
        if 4 * int(seen.count_nonzero()) < seen.numel():
            positions = seen.reshape(-1).nonzero().squeeze(1)
            positions = positions[are_negative(block, block_targets, positions)]
        else:
            positions = (seen & negative_mask(block, block_targets)).reshape(-1).nonzero().squeeze(1)
        for part in positions.split(NEGATIVES_AT_ONCE if num_scopes == 1 else block.numel()):
            scores = clamp_scores(block.reshape(-1).index_select(0, part))
            padded = _pad_rows(scores, part, num_scopes, block.numel() // num_scopes)
            yield Negatives(slice(start, start + block.numel()), part, *padded)
        start += block.numel()


def _pad_rows(values: Tensor, positions: Tensor, num_rows: int, length: int) -> tuple[Tensor, Tensor | None]:
    """([G, N], where in it the values are) of values at flat positions in G rows of that length."""
    if num_rows == 1:
        return values.unsqueeze(0), None
    ends = length * torch.arange(num_rows + 1, device=positions.device)
    sizes = torch.searchsorted(positions, ends).diff()
    there = torch.arange(int(sizes.max()), device=positions.device) < sizes[:, None]
    if there.all():
        return values.view(there.shape), None
    # Padding weighs nothing; where all scores lie close together, so does this one of them.
    return values[:1].nan_to_num().expand(there.shape).masked_scatter(there, values), there


def split_blocks(logits: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(logits, targets) of about LOGITS_AT_ONCE logits each, flat; with labels of whole anchors, [A, C]."""
    labels = are_labels(logits, targets)
    rows = logits.reshape(targets.numel(), -1) if labels else logits.reshape(-1)
    num_rows = max(1, LOGITS_AT_ONCE // (rows.shape[-1] if labels else 1))
    yield from zip(rows.split(num_rows), targets.reshape(-1).split(num_rows), strict=True)


def pad_to_bound(losses: list[Tensor], state: State, max_positives: int) -> tuple[list[Tensor], State]:
    """The state at the size of the caller's bound on the number of positives; beyond it everything is NaN.

    The reference has counted the positives and needs no bound: it does what the contract says of one.
    """
    missing = max_positives - state.positions.numel()
    nan = torch.nan if missing < 0 else 0
    padded = state._replace(
        positions=pad(state.positions, (0, missing)),
        scores=pad(state.scores, (0, missing)) + nan,
        weights=pad(state.weights, (0, missing)) + nan,
        updates=pad(state.updates, (0, missing)) + nan,
        offsets=state.offsets.clamp(max=max_positives),
    )
    return [loss + nan for loss in losses], padded


@torch.library.custom_op("triton_rankloss::transport", mutates_args=())
def transport(
    logits: Tensor,
    targets: Tensor,
    upstream: Tensor,
    positions: Tensor,
    scores: Tensor,
    weights: Tensor,
    updates: Tensor,
    offsets: Tensor,
    lines: Tensor,
    cells: Tensor,
    delta: float,
) -> Tensor:
    """Gradient of the logits, in their dtype, from a `State` and the upstream gradients [K] of the losses."""
    dtype = accumulation_dtype(logits)
    upstream, scores = upstream.to(dtype), scores.to(dtype)
    weights = weights.to(dtype) * upstream[0]
    gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format)
    low = below_all(scores[: int(offsets[-1])], delta)
    rows = gradient.view(offsets.numel() - 1, -1)
    for group in scopes_at_once(logits, offsets):
        own = (
            rows[group.scopes[0]] if group.scopes.numel() == 1 else rows.new_zeros(group.scopes.numel(), rows.shape[1])
        )
        positives, own_weights = group.of_positives(scores, low), group.of_positives(weights, 0)
        kinks = sorted_engine.sort_kinks(positives, delta)
        for negatives in relevant_negatives(logits, targets, group, positives, delta):
            carried = sorted_engine.transport(negatives.scores, positives, own_weights, delta, kinks)
            carried = carried.view(-1) if negatives.there is None else carried.masked_select(negatives.there)
            own.view(-1)[negatives.block].scatter_(0, negatives.positions, carried.to(gradient.dtype))
        if group.scopes.numel() > 1:
            rows[group.scopes] = own
    if scores.isnan().all():  # as where there are more positives than their bound
        gradient.view(-1)[positive_positions(logits, targets, None)] = torch.nan
    own = (positions >= 0) & (torch.arange(positions.numel(), device=positions.device) < offsets[-1])
    gradient.view(-1)[positions[own]] = (upstream @ updates.to(dtype))[own].to(gradient.dtype)
    return gradient


@dispatch.kernel(transport)
def _(*arguments: Any) -> Tensor:
    from .kernels.ranking import transport

    return transport.backward(*arguments)


transport.register_fake(dispatch.fake_gradient)
dispatch.once_differentiable(
    transport,
    "AP, aLRP and Rank & Sort Loss are error-driven: what backward returns is an update, not the gradient of a "
    "function, and has no derivative. Call backward without create_graph=True.",
)


def fake_state(logits: Tensor, arguments: tuple[Any, ...], num_losses: int, num_updates: int) -> tuple[Tensor, ...]:
    """Metadata of the losses and of a `State`; the last arguments of every ranking operator are these three."""
    *_, per_image, max_positives, _group = arguments
    num_positives = torch.library.get_ctx().new_dynamic_size() if max_positives is None else max_positives
    dtype = result_dtype(logits)
    return (
        *(logits.new_empty((), dtype=dtype) for _ in range(num_losses)),
        logits.new_empty(num_positives, dtype=torch.long),
        logits.new_empty(num_positives, dtype=dtype),
        logits.new_empty(num_positives, dtype=dtype),
        logits.new_empty((num_updates, num_positives), dtype=dtype),
        logits.new_empty((max(1, logits.shape[0]) if per_image else 1) + 1, dtype=torch.long),
        *_fake_lookup(logits, num_positives),
    )


def _fake_lookup(logits: Tensor, num_positives: Any) -> tuple[Tensor, Tensor]:
    """Metadata of lines and cells."""
    dtype = result_dtype(logits)
    if not dispatch.has_kernels(logits):
        return logits.new_empty(0, dtype=dtype), logits.new_empty(0, dtype=torch.int32)
    from .kernels.ranking.kinks import CELLS

    return (
        logits.new_empty((3, 2 * num_positives), dtype=dtype),
        logits.new_empty(CELLS * num_positives, dtype=torch.int32),
    )


def save_state(ctx: Any, logits: Tensor, targets: Tensor, state: tuple[Tensor, ...], delta: float) -> None:
    """Keep what `logits_gradient` needs; `state` are the fields of a `State`, and more behind them."""
    dispatch.save(ctx, (logits, targets, *state))
    ctx.mark_non_differentiable(*state)
    ctx.delta = delta


def logits_gradient(ctx: Any, saved: Sequence[Tensor], *upstreams: Tensor | None) -> Tensor | None:
    """Gradient of the logits, from what `save_state` keeps and the upstream gradients of the losses (None: not used).

    `saved` is given, since checkpointing lets a backward unpack `ctx.saved_tensors` once.
    """
    given = next((upstream for upstream in upstreams if upstream is not None), None)
    if given is None or not ctx.needs_input_grad[0]:
        return None
    if len(upstreams) == 1:
        upstream = given.reshape(1)
    else:
        upstream = torch.stack([torch.zeros_like(given) if u is None else u for u in upstreams])
    logits, targets, *state = saved
    return transport(logits, targets, upstream, *state, ctx.delta)

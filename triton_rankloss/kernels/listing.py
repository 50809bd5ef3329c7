"""Listing the positives: one pass counts those of every block, the next writes them; row-major, in whatever order
programs run.

    symbol           meaning
    positions [P]    flat positions of the positives in the logits, row-major
    scores [P]       their logits, float32 (float64 for float64 logits)
    offsets [S + 1]  positives offsets[s]:offsets[s + 1] belong to scope s
    num_ranked [1]   how many scopes have a positive
    counts, ends     of every block of targets: how many positives it has; how many it and all blocks before it have

    owner of outputs program (s, b), block b of scope s, of _count_positives_kernel: its count
                     of _list_positives_kernel: the slots of its positives, which begin where the block before ends;
                     b = 0: offsets[s], and an atomic addition to num_ranked
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..distributed import Ranks
from ..dtypes import result_dtype
from .candidates import TRITON_DTYPE, Scopes, clamp_scores, scopes_of
from .grid import cdiv

TARGETS_BLOCK = 1024  # targets per program; not tuned: the lists are a small part of what the other kernels read


class Positives(NamedTuple):
    """The positives of every scope; P is exact, or an upper bound where the host was not to wait for it."""

    positions: Tensor  # int64 [P]
    scores: Tensor  # [P]
    offsets: Tensor  # int64 [S + 1]
    num_ranked: Tensor  # int64 [1]


@triton.jit
def _load_block(
    targets_ptr,
    scope,
    start,
    num_targets,
    BLOCK: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
):
    """Targets start:start + BLOCK of a scope: (their flat positions, values, which make a positive)."""
    lanes = tl.arange(0, BLOCK)
    in_scope = start + lanes < num_targets
    at = scope * num_targets + start + lanes
    values = tl.load(targets_ptr + at, mask=in_scope, other=0)
    if LABELS:
        return at, values, (values >= 0) & (values < NUM_CLASSES) & in_scope
    return at, values, (values > 0) & in_scope


@triton.jit(do_not_specialize=["blocks_in_scope"])
def _count_positives_kernel(
    targets_ptr,
    counts_ptr,
    num_ranked_ptr,
    num_targets,
    blocks_in_scope,
    BLOCK: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
):
    """Count the positives of a block of targets."""
    program = tl.program_id(0)
    scope = (program // blocks_in_scope).to(tl.int64)
    start = (program - scope * blocks_in_scope) * BLOCK
    _, _, positive = _load_block(targets_ptr, scope, start, num_targets, BLOCK, NUM_CLASSES, LABELS)
    tl.store(counts_ptr + program, tl.sum(positive.to(tl.int64)))
    if program == 0:
        tl.store(num_ranked_ptr, 0)  # which _list_positives_kernel adds to


@triton.jit(do_not_specialize=["blocks_in_scope", "num_scopes", "capacity"])
def _list_positives_kernel(
    logits_ptr,
    targets_ptr,
    ends_ptr,
    positions_ptr,
    scores_ptr,
    offsets_ptr,
    num_ranked_ptr,
    num_targets,
    blocks_in_scope,
    num_scopes,
    capacity,
    BLOCK: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Write the positives of a block of targets behind those of all blocks before it."""
    program = tl.program_id(0)
    scope = (program // blocks_in_scope).to(tl.int64)
    block = program - scope * blocks_in_scope
    total = tl.load(ends_ptr + tl.num_programs(0) - 1)
    first = tl.load(ends_ptr + program - 1, mask=program > 0, other=0)
    if block == 0:
        end_of_scope = tl.load(ends_ptr + program + blocks_in_scope - 1)
        tl.atomic_add(num_ranked_ptr, (end_of_scope > first).to(tl.int64), sem="relaxed")
        tl.store(offsets_ptr + scope, tl.minimum(first, capacity))
        if scope == 0:
            tl.store(offsets_ptr + num_scopes, tl.minimum(total, capacity))

    start = block * BLOCK
    at, values, positive = _load_block(targets_ptr, scope, start, num_targets, BLOCK, NUM_CLASSES, LABELS)
    slots = first + tl.cumsum(positive.to(tl.int32), 0) - 1
    positive = positive & (slots < capacity)
    positions = at
    if LABELS:
        positions = at * NUM_CLASSES + values
    scores = clamp_scores(tl.load(logits_ptr + positions, mask=positive, other=0), COMPUTE)
    # More positives than the caller promised: no loss can be right, and NaN says so without the host.
    scores = tl.where(total > capacity, float("nan"), scores)
    tl.store(positions_ptr + slots, positions, mask=positive)
    tl.store(scores_ptr + slots, scores, mask=positive)


def find_positives(scopes: Scopes, max_positives: int | None) -> Positives:
    """List the positives; waits for their number unless `max_positives` bounds it."""
    logits, targets, num_scopes = scopes.logits, scopes.targets, scopes.num_scopes
    dtype, device = result_dtype(logits), logits.device
    if logits.numel() == 0:
        scores = logits.new_zeros(max_positives or 0, dtype=dtype)
        offsets = torch.zeros(num_scopes + 2, dtype=torch.long, device=device)
        return Positives(scores.long(), scores, offsets[:-1], offsets[-1:])
    blocks_in_scope = cdiv(scopes.num_targets, TARGETS_BLOCK)
    grid = (blocks_in_scope * num_scopes,)
    constants = {
        "num_targets": scopes.num_targets,
        "blocks_in_scope": blocks_in_scope,
        "BLOCK": TARGETS_BLOCK,
        "NUM_CLASSES": scopes.num_classes,
        "LABELS": scopes.labels,
    }
    counts = torch.empty(grid[0], dtype=torch.long, device=device)
    num_ranked = torch.empty(1, dtype=torch.long, device=device)
    _count_positives_kernel[grid](targets, counts, num_ranked, **constants)
    ends = counts.cumsum(0)
    capacity = int(ends[-1]) if max_positives is None else max_positives
    positives = Positives(
        positions=torch.empty(capacity, dtype=torch.long, device=device),
        scores=torch.empty(capacity, dtype=dtype, device=device),
        offsets=torch.empty(num_scopes + 1, dtype=torch.long, device=device),
        num_ranked=num_ranked,
    )
    if max_positives is not None:  # behind the last positive nothing is written, and they are read through
        positives.positions.zero_()
    _list_positives_kernel[grid](
        logits,
        targets,
        ends,
        *positives,
        num_scopes=num_scopes,
        capacity=capacity,
        COMPUTE=TRITON_DTYPE[dtype],
        **constants,
    )
    return positives


def gather_positives(own: Positives, ranks: Ranks) -> Positives:
    """The positives of all ranks that share the scope."""
    if not ranks.shared:
        return own
    offsets = torch.tensor([0, sum(ranks.sizes)], device=own.scores.device)
    num_ranked = torch.ones_like(own.num_ranked)
    return Positives(ranks.gather_positions(own.positions), ranks.gather_values(own.scores), offsets, num_ranked)


def positive_positions(logits: Tensor, targets: Tensor) -> Tensor:
    """Flat positions of the positives."""
    return find_positives(scopes_of(logits, targets, per_image=False), None).positions


def pad_to_bound(values: Tensor, max_positives: int) -> Tensor:
    """Values given per positive, for as many as there may be: those that are missing are NaN, and so is the loss."""
    return torch.nn.functional.pad(values, (0, max_positives - values.numel()), value=float("nan"))

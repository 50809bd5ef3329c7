"""Reading candidates with their targets, and listing the positives.

A scope is what is ranked together: an image, or the whole batch. Logits are [S, M]: S scopes of M candidates; targets
are dense [S, M] (> 0 positive, 0 negative, else ignored) or labels [S, M / C] (0..C-1 the positive channel of an
anchor, C and above background, below 0 ignored), read as they are: no one-hot, no gather of the logits.

    symbol           meaning
    positions [P]    flat positions of the positives in the logits, row-major
    scores [P]       their logits, float32 (float64 for float64 logits)
    offsets [S + 1]  positives offsets[s]:offsets[s + 1] belong to scope s
    num_ranked [1]   how many scopes have a positive
    counts, ends     of every block of targets: how many positives it has; how many it and all blocks before it have

    owner of outputs program (s, b), block b of scope s, of _count_positives_kernel: its count
                     of _list_positives_kernel: the slots of its positives, which begin where the block before ends;
                     b = 0: offsets[s], and an atomic addition to num_ranked
    order            row-major, in whatever order programs run

Scores are clamped to +-LARGEST_SCORE, so that an infinity has differences; NaN stays.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..distributed import Ranks
from ..dtypes import result_dtype
from ..targets import are_labels
from .arithmetic import bounded
from .grid import cdiv

LARGEST_SCORE = tl.constexpr(2.0**40)  # as in the reference
TARGETS_BLOCK = 1024  # targets per program; not tuned: the lists are a small part of what the other kernels read
TRITON_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}


class Positives(NamedTuple):
    """The positives of every scope; P is exact, or an upper bound where the host was not to wait for it."""

    positions: Tensor  # int64 [P]
    scores: Tensor  # [P]
    offsets: Tensor  # int64 [S + 1]
    num_ranked: Tensor  # int64 [1]


class Scopes(NamedTuple):
    """Logits and targets as the kernels read them: contiguous, with the shape of one scope."""

    logits: Tensor
    targets: Tensor
    num_scopes: int
    num_candidates: int  # M
    num_targets: int  # M, or M / C for labels
    num_classes: int  # C, 1 for dense targets
    labels: bool

    def arguments(self) -> dict[str, object]:
        """The constants of kernels that read candidates."""
        return {
            "NUM_CLASSES": self.num_classes,
            "LABELS": self.labels,
            "COMPUTE": TRITON_DTYPE[result_dtype(self.logits)],
        }


def scopes_of(logits: Tensor, targets: Tensor, per_image: bool) -> Scopes:
    """What is ranked together: each image, or everything."""
    labels = are_labels(logits, targets)
    num_scopes = max(1, logits.shape[0]) if per_image else 1
    if targets.dtype == torch.bool:
        targets = targets.view(torch.uint8)
    elif labels and targets.dtype not in (torch.int32, torch.int64):
        targets = targets.long()  # a narrow dtype need not hold the number of a class
    return Scopes(
        logits.contiguous(),
        targets.contiguous(),
        num_scopes,
        num_candidates=logits.numel() // num_scopes,
        num_targets=targets.numel() // num_scopes,
        num_classes=logits.shape[-1] if labels else 1,
        labels=labels,
    )


@triton.jit
def clamp_scores(x, COMPUTE: tl.constexpr):
    """Scores in COMPUTE; infinite ones become very large finite numbers, NaN stays."""
    return bounded(x.to(COMPUTE), LARGEST_SCORE)


@triton.jit
def load_targets(
    targets_ptr,
    scope,
    start,
    num_candidates,
    BLOCK: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
):
    """Candidates start:start + BLOCK of a scope: (flat positions, in the scope, negative, positive).

    Where all anchors of the block are background, as nearly everywhere, labels are looked at once an anchor.
    """
    lanes = tl.arange(0, BLOCK)
    in_scope = start + lanes < num_candidates
    positions = scope * num_candidates + start + lanes
    if LABELS:
        is_negative, is_positive = in_scope, in_scope & False
        # The 64-bit division is done once for the block; lanes divide small numbers by a constant.
        first_anchor = start // NUM_CLASSES
        targets_ptr += scope * (num_candidates // NUM_CLASSES) + first_anchor
        NUM_ANCHORS: tl.constexpr = triton.next_power_of_2(BLOCK // NUM_CLASSES + 2)
        anchors = tl.arange(0, NUM_ANCHORS)
        begin = (first_anchor + anchors) * NUM_CLASSES
        in_block = (begin < start + BLOCK) & (begin < num_candidates)
        of_anchors = tl.load(targets_ptr + anchors, mask=in_block, other=0)
        not_background = in_block & (of_anchors < NUM_CLASSES)
        if tl.max(tl.where(not_background, anchors, -1)) >= 0:
            channels = (start - first_anchor * NUM_CLASSES).to(tl.int32) + lanes
            labels = tl.load(targets_ptr + channels // NUM_CLASSES, mask=in_scope, other=0)
            is_positive = (labels == channels % NUM_CLASSES) & in_scope
            is_negative = (labels >= 0) & (labels != channels % NUM_CLASSES) & in_scope
    else:
        targets = tl.load(targets_ptr + positions, mask=in_scope, other=0)
        is_positive = (targets > 0) & in_scope
        is_negative = (targets == 0) & in_scope
    return positions, in_scope, is_negative, is_positive


@triton.jit
def load_candidates(
    logits_ptr,
    targets_ptr,
    scope,
    start,
    num_candidates,
    BLOCK: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Candidates start:start + BLOCK of a scope: (flat positions, in the scope, scores, negative, positive)."""
    lanes = tl.arange(0, BLOCK)
    # Before the targets, whose branch would wait for them alone: so both are on their way together.
    logits_ptr += scope * num_candidates + start
    logits = tl.load(logits_ptr + lanes, mask=start + lanes < num_candidates, other=0)
    positions, in_scope, is_negative, is_positive = load_targets(
        targets_ptr, scope, start, num_candidates, BLOCK, NUM_CLASSES, LABELS
    )
    scores = clamp_scores(logits, COMPUTE)
    return positions, in_scope, scores, is_negative, is_positive


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

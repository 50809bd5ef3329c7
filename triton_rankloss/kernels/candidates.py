"""Reading candidates with their targets.

A scope is what is ranked together: an image, or the whole batch. Logits are [S, M]: S scopes of M candidates; targets
are dense [S, M] (> 0 positive, 0 negative, else ignored) or labels [S, M / C] (0..C-1 the positive channel of an
anchor, C and above background, below 0 ignored), read as they are: no one-hot, no gather of the logits.

Scores are clamped to +-LARGEST_SCORE, so that an infinity has differences; NaN stays.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dtypes import result_dtype
from ..targets import are_labels
from .arithmetic import bounded

LARGEST_SCORE = tl.constexpr(2.0**40)  # as in the reference
TRITON_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}


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

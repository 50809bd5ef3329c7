"""The IoU of the positives in a block, in the three forms in which it is given, and their weights u^eta.

    per anchor, per logit    u of the logit at a position is iou[position // LOGITS_PER_IOU]
    per positive, [P]        LOGITS_PER_IOU = 0: u of the k-th positive, in row-major order, is iou[k]

To number its positives, a block must know how many are before it: they are counted in a pass of their own over the
targets, and no tensor of the size of the logits is made.

    symbol               meaning
    ends [B]             how many positives a block and all before it have; empty where not needed

    owner of outputs     _count_kernel r: the counts of every R-th block
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..blocks import block_arguments, blocks_of, is_background, kinds_of_block, programs_of
from ..candidates import Scopes
from .balance import iou_weights


@triton.jit
def positives_before(ends_ptr, block, LOGITS_PER_IOU: tl.constexpr):
    """How many positives are before a block, where that is needed."""
    if LOGITS_PER_IOU > 0:
        return tl.full([], 0, tl.int64)
    return tl.load(ends_ptr + block - 1, mask=block > 0, other=0)


@triton.jit
def load_weights(
    iou_ptr,
    num_iou,
    start,
    positive,
    num_before,
    eta,
    LOGITS_PER_IOU: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """u^eta of the positives among the logits from `start`; NaN of a positive that has no IoU."""
    if LOGITS_PER_IOU == 0:
        at = num_before + tl.cumsum(positive.to(tl.int32), 0) - 1
    else:
        at = (start + tl.arange(0, positive.shape[0])) // LOGITS_PER_IOU
    iou = tl.load(iou_ptr + at, mask=positive & (at < num_iou), other=float("nan"))
    return iou_weights(iou.to(COMPUTE), eta)


@triton.jit
def _count_kernel(
    targets_ptr,
    counts_ptr,
    num_candidates,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
):
    """Count the positives of every num_programs-th block."""
    for block in range(tl.program_id(0), tl.cdiv(num_candidates, BLOCK), tl.num_programs(0)):
        start = tl.cast(block, INDEX) * BLOCK
        count = tl.full([], 0, tl.int32)
        if is_background(targets_ptr, start, num_candidates, BLOCK, NUM_CLASSES, LABELS) == 0:
            _, positive = kinds_of_block(targets_ptr, start, num_candidates, BLOCK, NUM_CLASSES, LABELS)
            count += tl.sum(positive.to(tl.int32))
        tl.store(counts_ptr + block, count)


def logits_per_iou(logits: Tensor, iou: Tensor) -> int:
    """LOGITS_PER_IOU."""
    return 1 if iou.shape == logits.shape else logits.shape[-1] if iou.shape == logits.shape[:-1] else 0


def count_positives(scopes: Scopes) -> Tensor:
    """`ends` of a single scope."""
    counts = torch.empty(blocks_of(scopes), dtype=torch.int32, device=scopes.logits.device)
    arguments = block_arguments(scopes)
    names = "num_candidates", "INDEX", "BLOCK", "NUM_CLASSES", "LABELS", "num_warps"
    _count_kernel[programs_of(scopes),](scopes.targets, counts, **{name: arguments[name] for name in names})
    return counts.cumsum(0)

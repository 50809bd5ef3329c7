"""Blocks of candidates: the unit in which logits are read, and by which labels are skipped.

A block is *background* if it is whole and every candidate in it is a negative: at 80 classes and few positives, nearly
all are. The forward pass finds out, one look at the labels of a block. That of a pointwise loss notes a byte for each,
and its backward pass reads these bytes, and targets only where it must. In a background block no lane carries a mask.

One warp takes a block: what all its lanes must agree on, and every sum, then needs no barrier. Blocks but the last of a
scope are whole, and read and written without a mask: 16 bytes at a time in every dtype, whatever their number.

    symbol               meaning
    num                  candidates of the scope; pointers are to its first
    start                first candidate of the block, an int32 where that holds them all: 64-bit division is slow
"""

import math

import torch
import triton
import triton.language as tl

from ..targets import BACKGROUND_BLOCK as BLOCK
from .candidates import Scopes, clamp_scores
from .grid import cdiv

# Not yet measured on a GPU, but counted in machine code: 16 logits a lane share the work on labels and addresses.
NUM_WARPS = 1
PART = 256  # of a block that is not background is taken at once: its masks and labels then cost no more registers
BLOCKS_AT_ONCE = 2  # that a program writes: with more, one that gets no background block keeps a small launch waiting
LARGEST_BLOCK = 1024  # of any kernel, or of several blocks that one program begins
MAX_PROGRAMS = 8192  # that sum blocks up: at least twice what today's GPUs hold at once, so that no last wave matters


@triton.jit
def load_block(values_ptr, start, num, BLOCK: tl.constexpr, IN_LANE: tl.constexpr = 16):
    """The values of a block, at most IN_LANE neighbours of them in one lane; 0 behind the last."""
    at = values_ptr + start + tl.max_contiguous(tl.arange(0, BLOCK), IN_LANE)
    if start + BLOCK <= num:
        values = tl.load(at)
    else:
        values = tl.load(at, mask=start + tl.arange(0, BLOCK) < num, other=0)
    return values


@triton.jit
def sum_fours(values):
    """Sums of every four neighbours, which lie in one lane: sums over blocks then take a quarter of the registers."""
    return tl.sum(tl.reshape(values, [values.shape[0] // 4, 4]), 1)


@triton.jit
def count(mask, COMPUTE: tl.constexpr):
    """How many of a block are true. Summed as floats: as integers, LLVM gave float64 kernels a stack for the bits."""
    return tl.sum(mask.to(COMPUTE)).to(tl.int32)


@triton.jit
def store_block(values_ptr, start, num, values, BLOCK: tl.constexpr):
    """Write what load_block reads, in the dtype of the pointer."""
    at = values_ptr + start + tl.arange(0, BLOCK)
    values = values.to(values_ptr.dtype.element_ty)
    if start + BLOCK <= num:
        tl.store(at, values)
    else:
        tl.store(at, values, mask=start + tl.arange(0, BLOCK) < num)


@triton.jit
def is_background(targets_ptr, start, num, BLOCK: tl.constexpr, NUM_CLASSES: tl.constexpr, LABELS: tl.constexpr):
    """Whether the block is whole and holds negatives alone."""
    if LABELS:
        # Anchors that lie in the block, at least in part; a warp can look at 32 at once.
        first_anchor = start // NUM_CLASSES
        before = (start - first_anchor * NUM_CLASSES).to(tl.int32)
        PARTS: tl.constexpr = 0 if BLOCK % NUM_CLASSES == 0 else 2
        NEEDED: tl.constexpr = triton.next_power_of_2(BLOCK // NUM_CLASSES + PARTS)
        ANCHORS: tl.constexpr = 32 if NEEDED < 32 else NEEDED  # max() is no constant in Triton 3.2
        anchors = tl.arange(0, ANCHORS)
        used = (anchors * NUM_CLASSES < before + BLOCK) & (start + BLOCK <= num)
        labels = tl.load(targets_ptr + first_anchor + anchors, mask=used, other=NUM_CLASSES)
        others = tl.where(labels < NUM_CLASSES, anchors, -1)
    else:
        others = tl.where(load_block(targets_ptr, start, num, BLOCK) != 0, tl.arange(0, BLOCK), -1)
    return (tl.max(others) < 0) & (start + BLOCK <= num)  # a maximum of the mask itself can go through memory


@triton.jit
def kinds_of_block(targets_ptr, start, num, BLOCK: tl.constexpr, NUM_CLASSES: tl.constexpr, LABELS: tl.constexpr):
    """(which candidates of the block are negatives, which are positives)."""
    in_range = start + tl.arange(0, BLOCK) < num
    if LABELS:
        first_anchor = start // NUM_CLASSES
        channels = (start - first_anchor * NUM_CLASSES).to(tl.int32) + tl.arange(0, BLOCK)
        labels = tl.load(targets_ptr + first_anchor + channels // NUM_CLASSES, mask=in_range, other=-1)
        own = labels == channels % NUM_CLASSES
        return (labels >= 0) & (own == 0), own
    targets = load_block(targets_ptr, start, num, BLOCK)
    return (targets == 0) & in_range, (targets > 0) & in_range


@triton.jit
def load_candidates(
    logits_ptr,
    targets_ptr,
    start,
    num,
    BLOCK: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
    IN_LANE: tl.constexpr = 16,
):
    """(scores, which are negatives, which are positives) of a block of a ranking loss; IN_LANE as in load_block."""
    # Before the targets, whose branch would wait for them alone: so both are on their way together.
    logits = load_block(logits_ptr, start, num, BLOCK, IN_LANE)
    if LABELS:
        negative = start + tl.arange(0, BLOCK) < num
        positive = negative & False
        if is_background(targets_ptr, start, num, BLOCK, NUM_CLASSES, LABELS) == 0:
            negative, positive = kinds_of_block(targets_ptr, start, num, BLOCK, NUM_CLASSES, LABELS)
    else:
        negative, positive = kinds_of_block(targets_ptr, start, num, BLOCK, NUM_CLASSES, LABELS)
    return clamp_scores(logits, COMPUTE), negative, positive


def index_type(scopes: Scopes) -> tl.dtype:
    """What holds any `start`, and the end of its block."""
    return tl.int32 if scopes.num_candidates <= 2**31 - LARGEST_BLOCK else tl.int64


def num_warps_of(dtype: torch.dtype) -> int:
    """For a block of logits: with 16 float64 in each of 32 lanes, kernels for gfx1100 spill."""
    return 2 * NUM_WARPS if dtype == torch.float64 else NUM_WARPS


def block_arguments(scopes: Scopes) -> dict[str, object]:
    """The arguments of kernels that read blocks of candidates."""
    return {
        "num_candidates": scopes.num_candidates,
        "INDEX": index_type(scopes),
        "BLOCK": BLOCK,
        "PART": PART,
        "num_warps": num_warps_of(scopes.logits.dtype),
        **scopes.arguments(),
    }


def scope_arguments(scopes: Scopes) -> dict[str, object]:
    """What finds the first candidate of a scope; its alignment, in logits, is what makes 16-byte loads possible."""
    alignment = math.gcd(scopes.num_candidates, 16) if scopes.num_scopes > 1 else 16
    return {"num_targets": scopes.num_targets, "ALIGNMENT": alignment}


def blocks_of(scopes: Scopes) -> int:
    """Of each scope."""
    return cdiv(scopes.num_candidates, BLOCK)


def programs_of(scopes: Scopes) -> int:
    """Of each scope, that sum up its blocks."""
    return min(blocks_of(scopes), max(1, MAX_PROGRAMS // scopes.num_scopes))

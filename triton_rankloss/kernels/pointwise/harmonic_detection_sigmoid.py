"""The sigmoid form of the harmonic detection loss: its two passes over the logits.

harmonic_detection.py has the mathematics, symbols and owners of outputs; focal.py has c, without its weight.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import clamp_infinities, number
from ..candidates import load_targets, scopes_of
from .balance import MAX_PROGRAMS
from .focal import focal, focal_slope, power_of
from .harmonic import add_positives

# Not yet measured on a GPU. 8 logits a thread: two 16-byte loads of float32, one of half precision.
BLOCK = 1024
POSITIVES_BLOCK = 128  # one a thread: they are few


@triton.jit
def _sums_kernel(
    logits_ptr,
    targets_ptr,
    positions_ptr,
    localization_ptr,
    partial_ptr,
    slopes_ptr,
    num_logits,
    num_positives,
    positive_weight: tl.float64,
    gamma: tl.float64,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    POWER: tl.constexpr,
    DETACH: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums over every num_programs-th block of logits and tile of positives."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    positive_weight, gamma = number(positive_weight, COMPUTE), number(gamma, COMPUTE)
    sum_negatives = tl.zeros([BLOCK], COMPUTE)
    for block in range(program, tl.cdiv(num_logits, BLOCK), num_programs):
        start = tl.cast(block, tl.int64) * BLOCK
        positions, in_range, negative, _ = load_targets(targets_ptr, 0, start, num_logits, BLOCK, NUM_CLASSES, LABELS)
        x = clamp_infinities(tl.load(logits_ptr + positions, mask=in_range, other=0), COMPUTE)
        sum_negatives += tl.where(negative, focal(x, gamma, POWER), 0)
    sum_positives = tl.zeros([TILE], COMPUTE)
    for tile in range(program, tl.cdiv(num_positives, TILE), num_programs):
        i = tl.cast(tile, tl.int64) * TILE + tl.arange(0, TILE)
        positions = tl.load(positions_ptr + i, mask=i < num_positives, other=0)
        x = clamp_infinities(tl.load(logits_ptr + positions, mask=i < num_positives, other=0), COMPUTE)
        c = positive_weight * focal(-x, gamma, POWER)
        sum_positives += add_positives(c, localization_ptr, slopes_ptr, i, num_positives, DETACH)
    tl.store(partial_ptr + program, tl.sum(sum_negatives))
    tl.store(partial_ptr + num_programs + program, tl.sum(sum_positives))


@triton.jit
def _store_positives(
    logits_ptr,
    positions_ptr,
    slopes_c_ptr,
    gradient_ptr,
    i,
    num_positives,
    weight,
    gamma,
    POWER: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of the positives i."""
    in_range = i < num_positives
    positions = tl.load(positions_ptr + i, mask=in_range, other=0)
    x = clamp_infinities(tl.load(logits_ptr + positions, mask=in_range, other=0), COMPUTE)
    gradient = tl.load(slopes_c_ptr + i, mask=in_range, other=0) * (-weight * focal_slope(-x, gamma, POWER))
    tl.store(gradient_ptr + positions, gradient.to(gradient_ptr.dtype.element_ty), mask=in_range)


@triton.jit
def _store_negatives(
    logits_ptr,
    targets_ptr,
    gradient_ptr,
    start,
    num_logits,
    weight,
    gamma,
    BLOCK: tl.constexpr,
    POWER: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of the logits of a block that are not positives."""
    positions, in_range, negative, positive = load_targets(
        targets_ptr, 0, start, num_logits, BLOCK, NUM_CLASSES, LABELS
    )
    x = clamp_infinities(tl.load(logits_ptr + positions, mask=in_range, other=0), COMPUTE)
    gradient = tl.where(negative, weight * focal_slope(x, gamma, POWER), 0).to(gradient_ptr.dtype.element_ty)
    if tl.max(positive.to(tl.int32)) > 0:
        tl.store(gradient_ptr + positions, gradient, mask=in_range & (positive == 0))
    else:  # nearly always, and then stores are of 16 bytes
        tl.store(gradient_ptr + positions, gradient, mask=in_range)


@triton.jit
def _gradient_kernel(
    logits_ptr,
    targets_ptr,
    positions_ptr,
    scale_ptr,
    slopes_c_ptr,
    upstream_ptr,
    gradient_ptr,
    num_logits,
    num_positives,
    negative_weight: tl.float64,
    positive_weight: tl.float64,
    gamma: tl.float64,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    POWER: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of a tile of positives, or of the other logits of a block."""
    program, num_tiles = tl.program_id(0).to(tl.int64), tl.cdiv(num_positives, TILE)
    gamma, upstream = number(gamma, COMPUTE), tl.load(upstream_ptr).to(COMPUTE)
    if program < num_tiles:
        i = program * TILE + tl.arange(0, TILE)
        weight = number(positive_weight, COMPUTE) * upstream
        _store_positives(
            logits_ptr, positions_ptr, slopes_c_ptr, gradient_ptr, i, num_positives, weight, gamma, POWER, COMPUTE
        )
    else:
        weight = number(negative_weight, COMPUTE) * (tl.load(scale_ptr).to(COMPUTE) * upstream)
        start = (program - num_tiles) * BLOCK
        _store_negatives(
            logits_ptr,
            targets_ptr,
            gradient_ptr,
            start,
            num_logits,
            weight,
            gamma,
            BLOCK,
            POWER,
            NUM_CLASSES,
            LABELS,
            COMPUTE,
        )


def sum_sigmoid(
    logits: Tensor,
    targets: Tensor,
    positions: Tensor,
    localization: Tensor,
    slopes: Tensor,
    positive_weight: float,
    gamma: float,
    detach_factors: bool,
) -> Tensor:
    """partial [3, R], of which the third row is not written; fills slopes [2, P], without scale."""
    num_programs = min(triton.cdiv(logits.numel(), BLOCK), MAX_PROGRAMS)
    partial = torch.empty(3, num_programs, dtype=slopes.dtype, device=logits.device)
    if num_programs > 0:
        scopes = scopes_of(logits, targets, per_image=False)
        _sums_kernel[num_programs,](
            scopes.logits,
            scopes.targets,
            positions,
            localization,
            partial,
            slopes,
            num_logits=logits.numel(),
            num_positives=positions.numel(),
            positive_weight=positive_weight,
            gamma=gamma,
            BLOCK=BLOCK,
            TILE=POSITIVES_BLOCK,
            POWER=power_of(gamma),
            DETACH=detach_factors,
            **scopes.arguments(),
        )
    return partial


def store_sigmoid_gradient(
    logits: Tensor,
    targets: Tensor,
    positions: Tensor,
    scale: Tensor,
    slopes_c: Tensor,
    upstream: Tensor,
    gradient: Tensor,
    negative_weight: float,
    positive_weight: float,
    gamma: float,
) -> None:
    """Fill the gradient of the logits."""
    num_positives = positions.numel()
    scopes = scopes_of(logits, targets, per_image=False)
    num_programs = triton.cdiv(num_positives, POSITIVES_BLOCK) + triton.cdiv(logits.numel(), BLOCK)
    _gradient_kernel[num_programs,](
        scopes.logits,
        scopes.targets,
        positions,
        scale,
        slopes_c,
        upstream,
        gradient,
        num_logits=logits.numel(),
        num_positives=num_positives,
        negative_weight=negative_weight,
        positive_weight=positive_weight,
        gamma=gamma,
        BLOCK=BLOCK,
        TILE=POSITIVES_BLOCK,
        POWER=power_of(gamma),
        **scopes.arguments(),
    )

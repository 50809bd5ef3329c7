"""The sigmoid form of the harmonic detection loss: its two passes over the logits.

harmonic_detection.py has the mathematics, symbols and owners of outputs; focal.py has c, without its weight.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import clamp_infinities, number
from ..blocks import (
    BLOCKS_AT_ONCE,
    block_arguments,
    blocks_of,
    is_background,
    kinds_of_block,
    load_block,
    programs_of,
    store_block,
    sum_fours,
)
from ..candidates import scopes_of
from ..grid import cdiv
from .focal import focal, focal_slope, power_of
from .harmonic import add_positives

POSITIVES_BLOCK = 128  # four a lane: they are few


@triton.jit
def _sums_kernel(
    logits_ptr,
    targets_ptr,
    positions_ptr,
    localization_ptr,
    background_ptr,
    partial_ptr,
    slopes_ptr,
    num_candidates,
    num_positives,
    positive_weight: tl.float64,
    gamma: tl.float64,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
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
    sum_background = tl.zeros([BLOCK // 4], COMPUTE)
    sum_negatives = tl.zeros([PART], COMPUTE)
    for block in range(program, tl.cdiv(num_candidates, BLOCK), num_programs):
        start = tl.cast(block, INDEX) * BLOCK
        x = clamp_infinities(load_block(logits_ptr, start, num_candidates, BLOCK), COMPUTE)
        background = is_background(targets_ptr, start, num_candidates, BLOCK, NUM_CLASSES, LABELS)
        tl.store(background_ptr + block, background)
        if background:
            sum_background += sum_fours(focal(x, gamma, POWER))
        else:
            for part in range(start, tl.minimum(start + BLOCK, num_candidates), PART):
                z = clamp_infinities(load_block(logits_ptr, part, num_candidates, PART), COMPUTE)
                negative, _ = kinds_of_block(targets_ptr, part, num_candidates, PART, NUM_CLASSES, LABELS)
                sum_negatives += tl.where(negative, focal(z, gamma, POWER), 0)
    sum_positives = tl.zeros([TILE], COMPUTE)
    for tile in range(program, tl.cdiv(num_positives, TILE), num_programs):
        i = tl.cast(tile, tl.int64) * TILE + tl.arange(0, TILE)
        positions = tl.load(positions_ptr + i, mask=i < num_positives, other=0)
        z = -clamp_infinities(tl.load(logits_ptr + positions, mask=i < num_positives, other=0), COMPUTE)
        c = positive_weight * focal(z, gamma, POWER)
        sum_positives += add_positives(c, localization_ptr, slopes_ptr, i, num_positives, DETACH)
    tl.store(partial_ptr + program, tl.sum(sum_background) + tl.sum(sum_negatives))
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
    z = -clamp_infinities(tl.load(logits_ptr + positions, mask=in_range, other=0), COMPUTE)
    gradient = tl.load(slopes_c_ptr + i, mask=in_range, other=0) * (-weight * focal_slope(z, gamma, POWER))
    tl.store(gradient_ptr + positions, gradient.to(gradient_ptr.dtype.element_ty), mask=in_range)


@triton.jit
def _store_part(
    logits_ptr,
    targets_ptr,
    gradient_ptr,
    start,
    num_candidates,
    weight,
    gamma,
    PART: tl.constexpr,
    POWER: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of the logits of a part that are not positives."""
    x = clamp_infinities(load_block(logits_ptr, start, num_candidates, PART), COMPUTE)
    negative, positive = kinds_of_block(targets_ptr, start, num_candidates, PART, NUM_CLASSES, LABELS)
    gradient = tl.where(negative, weight * focal_slope(x, gamma, POWER), 0)
    if tl.max(positive.to(tl.int32)) > 0:
        i = start + tl.arange(0, PART)
        mask = (i < num_candidates) & (positive == 0)
        tl.store(gradient_ptr + i, gradient.to(gradient_ptr.dtype.element_ty), mask=mask)
    else:
        store_block(gradient_ptr, start, num_candidates, gradient, PART)


@triton.jit
def _gradient_kernel(
    logits_ptr,
    targets_ptr,
    positions_ptr,
    background_ptr,
    scale_ptr,
    slopes_c_ptr,
    upstream_ptr,
    gradient_ptr,
    num_candidates,
    num_positives,
    negative_weight: tl.float64,
    positive_weight: tl.float64,
    gamma: tl.float64,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
    PART: tl.constexpr,
    BLOCKS_AT_ONCE: tl.constexpr,
    TILE: tl.constexpr,
    POWER: tl.constexpr,
    NUM_CLASSES: tl.constexpr,
    LABELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of a tile of positives, or of the other logits of some blocks."""
    program, num_tiles, num_blocks = tl.program_id(0), tl.cdiv(num_positives, TILE), tl.cdiv(num_candidates, BLOCK)
    gamma, upstream = number(gamma, COMPUTE), tl.load(upstream_ptr).to(COMPUTE)
    if program < num_tiles:
        i = program.to(tl.int64) * TILE + tl.arange(0, TILE)
        weight = number(positive_weight, COMPUTE) * upstream
        _store_positives(
            logits_ptr, positions_ptr, slopes_c_ptr, gradient_ptr, i, num_positives, weight, gamma, POWER, COMPUTE
        )
    else:
        weight = number(negative_weight, COMPUTE) * (tl.load(scale_ptr).to(COMPUTE) * upstream)
        first_block = (program - num_tiles) * BLOCKS_AT_ONCE
        for block in range(first_block, tl.minimum(first_block + BLOCKS_AT_ONCE, num_blocks)):
            start = tl.cast(block, INDEX) * BLOCK
            if tl.load(background_ptr + block) != 0:
                x = clamp_infinities(load_block(logits_ptr, start, num_candidates, BLOCK), COMPUTE)
                store_block(gradient_ptr, start, num_candidates, weight * focal_slope(x, gamma, POWER), BLOCK)
            else:
                for part in range(start, tl.minimum(start + BLOCK, num_candidates), PART):
                    _store_part(
                        logits_ptr,
                        targets_ptr,
                        gradient_ptr,
                        part,
                        num_candidates,
                        weight,
                        gamma,
                        PART,
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
    background: Tensor,
    positive_weight: float,
    gamma: float,
    detach_factors: bool,
) -> Tensor:
    """partial [3, R], of which the third row is not written; fills slopes [2, P], without scale, and `background`."""
    scopes = scopes_of(logits, targets, per_image=False)
    partial = torch.empty(3, programs_of(scopes), dtype=slopes.dtype, device=logits.device)
    if logits.numel() > 0:
        _sums_kernel[partial.shape[1],](
            scopes.logits,
            scopes.targets,
            positions,
            localization,
            background,
            partial,
            slopes,
            num_positives=positions.numel(),
            positive_weight=positive_weight,
            gamma=gamma,
            TILE=POSITIVES_BLOCK,
            POWER=power_of(gamma),
            DETACH=detach_factors,
            **block_arguments(scopes),
        )
    return partial


def store_sigmoid_gradient(
    logits: Tensor,
    targets: Tensor,
    positions: Tensor,
    scale: Tensor,
    slopes_c: Tensor,
    background: Tensor,
    upstream: Tensor,
    gradient: Tensor,
    negative_weight: float,
    positive_weight: float,
    gamma: float,
) -> None:
    """Fill the gradient of the logits."""
    scopes = scopes_of(logits, targets, per_image=False)
    num_programs = cdiv(positions.numel(), POSITIVES_BLOCK) + cdiv(blocks_of(scopes), BLOCKS_AT_ONCE)
    _gradient_kernel[num_programs,](
        scopes.logits,
        scopes.targets,
        positions,
        background,
        scale,
        slopes_c,
        upstream,
        gradient,
        num_positives=positions.numel(),
        negative_weight=negative_weight,
        positive_weight=positive_weight,
        gamma=gamma,
        BLOCKS_AT_ONCE=BLOCKS_AT_ONCE,
        TILE=POSITIVES_BLOCK,
        POWER=power_of(gamma),
        **block_arguments(scopes),
    )

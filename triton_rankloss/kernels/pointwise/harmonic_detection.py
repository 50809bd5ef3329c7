"""Harmonic detection loss on the GPU, from the localization losses l_i: one pass for the sums, one for the gradient.

    loss = (sum_i h(c_i, l_i) + sum_j c_j) / avg_factor      h and its derivatives: harmonic.py
    sigmoid    c = weight sigmoid(-s)^gamma softplus(-s) of a logit, s = x for a positive, -x for a negative
    softmax    c of a row of logits: softmax.py; negatives are the rows of the background
The gradient of c_j is multiplied by scale = 1 / avg_factor, of c_i by scale dh/dc_i.

Which logits are negatives is read from the targets, in one pass over the logits. The positives are listed: the same
programs take them by the list afterwards, and nobody has to know the place of a positive in it.

    symbol               meaning
    partial [3, R]       sum_j c_j without weight, sum_i h, for softmax the number of rows that are not ignored
    weights [2, P]       scale dh/dc_i, scale dh/dl_i

    owner of outputs     _*_sums_kernel r: partial[:, r], and weights, without scale, of every R-th tile of positives
                         _finish_kernel t: tile t of weights, times scale; t = 0: loss and scale
                         _*_gradient_kernel t: of the positives in tile t; behind the last, of the rest of a block
    accumulation         in a program in float32 (float64 for float64 logits), across programs in float64
    order of every sum   fixed by the shapes alone: results are bitwise the same on any device, in any run
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ..arithmetic import finite, focal, focal_slope, number, power_of
from ..candidates import load_targets, scopes_of
from .balance import MAX_PROGRAMS, divisor, sum_of
from .harmonic import add_positives
from .harmonic_detection_softmax import softmax_sums, store_softmax_gradient

# Not yet measured on a GPU. 8 logits a thread: two 16-byte loads of float32, one of half precision.
BLOCK = 1024
POSITIVES_BLOCK = 128  # one a thread: they are few


@triton.jit
def _sigmoid_sums_kernel(
    logits_ptr, targets_ptr, positions_ptr, localization_ptr, partial_ptr, weights_ptr, num_logits, num_positives,
    positive_weight: tl.float64, gamma: tl.float64,
    BLOCK: tl.constexpr, TILE: tl.constexpr, POWER: tl.constexpr, DETACH: tl.constexpr,
    NUM_CLASSES: tl.constexpr, LABELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Sums over every num_programs-th block of logits and tile of positives."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    positive_weight, gamma = number(positive_weight, COMPUTE), number(gamma, COMPUTE)
    negatives = tl.zeros([BLOCK], COMPUTE)
    for block in range(program, tl.cdiv(num_logits, BLOCK), num_programs):
        positions, there, negative, _ = load_targets(
            targets_ptr, 0, tl.cast(block, tl.int64) * BLOCK, num_logits, BLOCK, NUM_CLASSES, LABELS
        )
        x = finite(tl.load(logits_ptr + positions, mask=there, other=0), COMPUTE)
        negatives += tl.where(negative, focal(-x, gamma, POWER), 0)
    positives = tl.zeros([TILE], COMPUTE)
    for tile in range(program, tl.cdiv(num_positives, TILE), num_programs):
        i = tl.cast(tile, tl.int64) * TILE + tl.arange(0, TILE)
        positions = tl.load(positions_ptr + i, mask=i < num_positives, other=0)
        x = finite(tl.load(logits_ptr + positions, mask=i < num_positives, other=0), COMPUTE)
        c = positive_weight * focal(x, gamma, POWER)
        positives += add_positives(c, localization_ptr, weights_ptr, i, num_positives, DETACH)
    tl.store(partial_ptr + program, tl.sum(negatives))
    tl.store(partial_ptr + num_programs + program, tl.sum(positives))


@triton.jit
def _finish_kernel(
    partial_ptr, avg_ptr, loss_ptr, scale_ptr, weights_ptr, num_programs, num_positives, negative_weight: tl.float64,
    avg_number: tl.float64,
    HAS_NUMBER: tl.constexpr, SOFTMAX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    default = tl.full([], 0, tl.float64) + num_positives
    if SOFTMAX:
        default = sum_of(partial_ptr, 2, num_programs, BLOCK)
    scale = 1 / divisor(avg_ptr, avg_number, default, HAS_NUMBER)
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    weights = tl.load(weights_ptr + k, mask=k < 2 * num_positives, other=0)
    tl.store(weights_ptr + k, weights.to(tl.float64) * scale, mask=k < 2 * num_positives)
    if tl.program_id(0) == 0:
        total = negative_weight * sum_of(partial_ptr, 0, num_programs, BLOCK)
        total += sum_of(partial_ptr, 1, num_programs, BLOCK)
        tl.store(loss_ptr, scale * total)
        tl.store(scale_ptr, scale)


@triton.jit
def _store_positives(
    logits_ptr, positions_ptr, of_positives_ptr, gradient_ptr, i, num_positives, weight, gamma,
    POWER: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Gradient of the positives i."""
    there = i < num_positives
    positions = tl.load(positions_ptr + i, mask=there, other=0)
    x = finite(tl.load(logits_ptr + positions, mask=there, other=0), COMPUTE)
    gradient = tl.load(of_positives_ptr + i, mask=there, other=0) * (weight * focal_slope(x, gamma, POWER))
    tl.store(gradient_ptr + positions, gradient.to(gradient_ptr.dtype.element_ty), mask=there)


@triton.jit
def _store_negatives(
    logits_ptr, targets_ptr, gradient_ptr, start, num_logits, weight, gamma,
    BLOCK: tl.constexpr, POWER: tl.constexpr, NUM_CLASSES: tl.constexpr, LABELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits of a block that are not positives."""
    positions, there, negative, positive = load_targets(targets_ptr, 0, start, num_logits, BLOCK, NUM_CLASSES, LABELS)
    x = finite(tl.load(logits_ptr + positions, mask=there, other=0), COMPUTE)
    gradient = tl.where(negative, -weight * focal_slope(-x, gamma, POWER), 0).to(gradient_ptr.dtype.element_ty)
    if tl.max(positive.to(tl.int32)) > 0:
        tl.store(gradient_ptr + positions, gradient, mask=there & (positive == 0))
    else:  # nearly always, and then stores are of 16 bytes
        tl.store(gradient_ptr + positions, gradient, mask=there)


@triton.jit
def _sigmoid_gradient_kernel(
    logits_ptr, targets_ptr, positions_ptr, scale_ptr, of_positives_ptr, upstream_ptr, gradient_ptr, num_logits,
    num_positives, negative_weight: tl.float64, positive_weight: tl.float64, gamma: tl.float64,
    BLOCK: tl.constexpr, TILE: tl.constexpr, POWER: tl.constexpr,
    NUM_CLASSES: tl.constexpr, LABELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of positives, or of the other logits of a block."""
    program, num_tiles = tl.program_id(0).to(tl.int64), tl.cdiv(num_positives, TILE)
    gamma, upstream = number(gamma, COMPUTE), tl.load(upstream_ptr).to(COMPUTE)
    if program < num_tiles:
        _store_positives(
            logits_ptr, positions_ptr, of_positives_ptr, gradient_ptr, program * TILE + tl.arange(0, TILE),
            num_positives, number(positive_weight, COMPUTE) * upstream, gamma, POWER, COMPUTE,
        )  # fmt: skip
    else:
        weight = number(negative_weight, COMPUTE) * (tl.load(scale_ptr).to(COMPUTE) * upstream)
        _store_negatives(
            logits_ptr, targets_ptr, gradient_ptr, (program - num_tiles) * BLOCK, num_logits, weight, gamma,
            BLOCK, POWER, NUM_CLASSES, LABELS, COMPUTE,
        )  # fmt: skip


def forward(
    logits: Tensor, targets: Tensor, positions: Tensor, localization: Tensor, activation: str, background: int,
    negative_weight: float, positive_weight: float, gamma: float, detach_factors: bool, avg_number: float | None,
    avg_tensor: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(loss, scale [], weights [2, P])."""
    kind: Any = {"dtype": result_dtype(logits), "device": logits.device}
    num_positives, softmax = positions.numel(), activation == "softmax"
    weights = torch.empty(2, num_positives, **kind)
    listed = positions.contiguous(), localization.contiguous()
    if softmax:
        partial = softmax_sums(logits, targets, *listed, weights, background, detach_factors)
    else:
        partial = torch.empty(3, min(triton.cdiv(logits.numel(), BLOCK), MAX_PROGRAMS), **kind)
        if logits.numel() > 0:
            scopes = scopes_of(logits, targets, per_image=False)
            _sigmoid_sums_kernel[partial.shape[1],](
                scopes.logits, scopes.targets, *listed, partial, weights, logits.numel(), num_positives,
                positive_weight, gamma, BLOCK=BLOCK, TILE=POSITIVES_BLOCK, POWER=power_of(gamma),
                DETACH=detach_factors, **scopes.arguments(),
            )  # fmt: skip
    loss, scale = torch.empty((), **kind), torch.empty((), **kind)
    _finish_kernel[max(1, triton.cdiv(2 * num_positives, MAX_PROGRAMS)),](
        partial, avg_tensor, loss, scale, weights, partial.shape[1], num_positives, negative_weight, avg_number or 0.0,
        HAS_NUMBER=avg_number is not None, SOFTMAX=softmax, BLOCK=MAX_PROGRAMS,
    )  # fmt: skip
    return loss, scale, weights


def backward(
    logits: Tensor, targets: Tensor, positions: Tensor, scale: Tensor, of_positives: Tensor, upstream: Tensor,
    activation: str, background: int, negative_weight: float, positive_weight: float, gamma: float,
) -> Tensor:  # fmt: skip
    """Gradient of the logits."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if logits.numel() == 0:
        return gradient
    state = positions.contiguous(), scale, of_positives.contiguous(), upstream, gradient
    if activation == "softmax":
        store_softmax_gradient(logits, targets, *state, background)
    else:
        scopes = scopes_of(logits, targets, per_image=False)
        num_positives = positions.numel()
        grid = triton.cdiv(num_positives, POSITIVES_BLOCK) + triton.cdiv(logits.numel(), BLOCK)
        _sigmoid_gradient_kernel[grid,](
            scopes.logits, scopes.targets, *state, logits.numel(), num_positives, negative_weight, positive_weight,
            gamma, BLOCK=BLOCK, TILE=POSITIVES_BLOCK, POWER=power_of(gamma), **scopes.arguments(),
        )  # fmt: skip
    return gradient

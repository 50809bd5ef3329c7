"""The softmax form of the harmonic detection loss: its two passes over rows of logits.

harmonic_detection.py has the mathematics, symbols and owners of outputs; softmax.py has c of a row, and its gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..candidates import TRITON_DTYPE
from .harmonic import add_positives
from .softmax import cross_entropy, num_programs_of, store_gradient, tile_of


@triton.jit
def _sums_kernel(
    logits_ptr,
    labels_ptr,
    positions_ptr,
    localization_ptr,
    partial_ptr,
    slopes_ptr,
    num_rows,
    num_positives,
    background,
    DETACH: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums over every num_programs-th tile of rows and of positives."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    sum_negatives = tl.zeros([ROWS], COMPUTE)
    num_used = tl.zeros([ROWS], tl.int32)
    for tile in range(program, tl.cdiv(num_rows, ROWS), num_programs):
        rows = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        labels = tl.load(labels_ptr + rows, mask=rows < num_rows, other=-1)
        negative = labels == background
        c = cross_entropy(logits_ptr, rows, labels, negative, COLS, NUM_CHANNELS, COMPUTE)
        sum_negatives += tl.where(negative, c, 0)
        num_used += (labels >= 0).to(tl.int32)
    sum_positives = tl.zeros([ROWS], COMPUTE)
    for tile in range(program, tl.cdiv(num_positives, ROWS), num_programs):
        i = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        in_range = i < num_positives
        rows = tl.load(positions_ptr + i, mask=in_range, other=0) // NUM_CHANNELS
        labels = tl.load(labels_ptr + rows, mask=in_range, other=0)
        c = cross_entropy(logits_ptr, rows, labels, in_range, COLS, NUM_CHANNELS, COMPUTE)
        sum_positives += add_positives(c, localization_ptr, slopes_ptr, i, num_positives, DETACH)
    tl.store(partial_ptr + program, tl.sum(sum_negatives))
    tl.store(partial_ptr + num_programs + program, tl.sum(sum_positives))
    tl.store(partial_ptr + 2 * num_programs + program, tl.sum(num_used))


@triton.jit
def _gradient_kernel(
    logits_ptr,
    labels_ptr,
    positions_ptr,
    scale_ptr,
    slopes_c_ptr,
    upstream_ptr,
    gradient_ptr,
    num_rows,
    num_positives,
    background,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of a tile of positives, or of the other rows of a tile."""
    program, num_tiles = tl.program_id(0).to(tl.int64), tl.cdiv(num_positives, ROWS)
    upstream = tl.load(upstream_ptr).to(COMPUTE)
    if program < num_tiles:
        i = program * ROWS + tl.arange(0, ROWS)
        stored = i < num_positives
        used = stored
        rows = tl.load(positions_ptr + i, mask=stored, other=0) // NUM_CHANNELS
        labels = tl.load(labels_ptr + rows, mask=stored, other=0).to(tl.int64)
        factors = tl.load(slopes_c_ptr + i, mask=stored, other=0).to(COMPUTE) * upstream
    else:
        rows = (program - num_tiles) * ROWS + tl.arange(0, ROWS)
        labels = tl.load(labels_ptr + rows, mask=rows < num_rows, other=-1).to(tl.int64)
        used = labels == background
        stored = (rows < num_rows) & (used | (labels < 0))
        factors = tl.where(used, tl.load(scale_ptr).to(COMPUTE) * upstream, 0)
    store_gradient(logits_ptr, gradient_ptr, rows, labels, stored, used, factors, COLS, NUM_CHANNELS, COMPUTE)


def sum_softmax(
    logits: Tensor,
    labels: Tensor,
    positions: Tensor,
    localization: Tensor,
    slopes: Tensor,
    background: int,
    detach_factors: bool,
) -> Tensor:
    """partial [3, R]; fills slopes [2, P], without scale."""
    num_channels, num_rows = logits.shape[-1], labels.numel()
    tile = tile_of(num_channels)
    num_programs = num_programs_of(num_rows, tile)
    partial = torch.empty(3, num_programs, dtype=slopes.dtype, device=logits.device)
    if num_programs > 0:
        _sums_kernel[num_programs,](
            logits.contiguous(),
            labels.contiguous(),
            positions,
            localization,
            partial,
            slopes,
            num_rows=num_rows,
            num_positives=positions.numel(),
            background=background % num_channels,
            DETACH=detach_factors,
            COMPUTE=TRITON_DTYPE[partial.dtype],
            **tile,
        )
    return partial


def store_softmax_gradient(
    logits: Tensor,
    labels: Tensor,
    positions: Tensor,
    scale: Tensor,
    slopes_c: Tensor,
    upstream: Tensor,
    gradient: Tensor,
    background: int,
) -> None:
    """Fill the gradient of the logits."""
    num_channels, num_rows, num_positives = logits.shape[-1], labels.numel(), positions.numel()
    tile = tile_of(num_channels)
    num_programs = triton.cdiv(num_positives, tile["ROWS"]) + triton.cdiv(num_rows, tile["ROWS"])
    _gradient_kernel[num_programs,](
        logits.contiguous(),
        labels.contiguous(),
        positions,
        scale,
        slopes_c,
        upstream,
        gradient,
        num_rows=num_rows,
        num_positives=num_positives,
        background=background % num_channels,
        COMPUTE=TRITON_DTYPE[scale.dtype],
        **tile,
    )

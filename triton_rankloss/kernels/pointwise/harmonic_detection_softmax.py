"""The softmax form of the harmonic detection loss: its two passes over rows of logits.

Mathematics, symbols and owners of outputs are those of harmonic_detection.py; what is done to a row: softmax.py.
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
    logits_ptr, labels_ptr, positions_ptr, localization_ptr, partial_ptr, weights_ptr, num_rows, num_positives,
    background,
    DETACH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, NUM_CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Sums over every num_programs-th tile of rows and of positives."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    negatives = tl.zeros([ROWS], COMPUTE)
    count = tl.zeros([ROWS], tl.int32)
    for tile in range(program, tl.cdiv(num_rows, ROWS), num_programs):
        rows = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        labels = tl.load(labels_ptr + rows, mask=rows < num_rows, other=-1)
        negative = labels == background
        c = cross_entropy(logits_ptr, rows, labels, negative, COLS, NUM_CHANNELS, COMPUTE)
        negatives += tl.where(negative, c, 0)
        count += (labels >= 0).to(tl.int32)
    positives = tl.zeros([ROWS], COMPUTE)
    for tile in range(program, tl.cdiv(num_positives, ROWS), num_programs):
        i = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        there = i < num_positives
        rows = tl.load(positions_ptr + i, mask=there, other=0) // NUM_CHANNELS
        labels = tl.load(labels_ptr + rows, mask=there, other=0)
        c = cross_entropy(logits_ptr, rows, labels, there, COLS, NUM_CHANNELS, COMPUTE)
        positives += add_positives(c, localization_ptr, weights_ptr, i, num_positives, DETACH)
    tl.store(partial_ptr + program, tl.sum(negatives))
    tl.store(partial_ptr + num_programs + program, tl.sum(positives))
    tl.store(partial_ptr + 2 * num_programs + program, tl.sum(count))


@triton.jit
def _gradient_kernel(
    logits_ptr, labels_ptr, positions_ptr, scale_ptr, of_positives_ptr, upstream_ptr, gradient_ptr, num_rows,
    num_positives, background,
    ROWS: tl.constexpr, COLS: tl.constexpr, NUM_CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of positives, or of the other rows of a tile."""
    program, num_tiles = tl.program_id(0).to(tl.int64), tl.cdiv(num_positives, ROWS)
    upstream = tl.load(upstream_ptr).to(COMPUTE)
    if program < num_tiles:
        i = program * ROWS + tl.arange(0, ROWS)
        there = i < num_positives
        rows = tl.load(positions_ptr + i, mask=there, other=0) // NUM_CHANNELS
        labels = tl.load(labels_ptr + rows, mask=there, other=0).to(tl.int64)
        used = there
        factors = tl.load(of_positives_ptr + i, mask=there, other=0).to(COMPUTE) * upstream
    else:
        rows = (program - num_tiles) * ROWS + tl.arange(0, ROWS)
        labels = tl.load(labels_ptr + rows, mask=rows < num_rows, other=-1).to(tl.int64)
        used = labels == background
        there = (rows < num_rows) & (used | (labels < 0))
        factors = tl.where(used, tl.load(scale_ptr).to(COMPUTE) * upstream, 0)
    store_gradient(logits_ptr, gradient_ptr, rows, labels, there, used, factors, COLS, NUM_CHANNELS, COMPUTE)


def softmax_sums(
    logits: Tensor, labels: Tensor, positions: Tensor, localization: Tensor, weights: Tensor, background: int,
    detach_factors: bool,
) -> Tensor:  # fmt: skip
    """partial [3, R]; makes weights [2, P], without scale."""
    num_channels, num_rows = logits.shape[-1], labels.numel()
    tile = tile_of(num_channels)
    partial = torch.empty(3, num_programs_of(num_rows, tile), dtype=weights.dtype, device=logits.device)
    if num_rows > 0:
        _sums_kernel[partial.shape[1],](
            logits.contiguous(), labels.contiguous(), positions, localization, partial, weights, num_rows,
            positions.numel(), background % num_channels, DETACH=detach_factors, COMPUTE=TRITON_DTYPE[partial.dtype],
            **tile,
        )  # fmt: skip
    return partial


def store_softmax_gradient(
    logits: Tensor, labels: Tensor, positions: Tensor, scale: Tensor, of_positives: Tensor, upstream: Tensor,
    gradient: Tensor, background: int,
) -> None:  # fmt: skip
    """Fill the gradient of the logits."""
    num_channels, num_rows, num_positives = logits.shape[-1], labels.numel(), positions.numel()
    tile = tile_of(num_channels)
    grid = triton.cdiv(num_positives, tile["ROWS"]) + triton.cdiv(num_rows, tile["ROWS"])
    _gradient_kernel[grid,](
        logits.contiguous(), labels.contiguous(), positions, scale, of_positives, upstream, gradient, num_rows,
        num_positives, background % num_channels, COMPUTE=TRITON_DTYPE[scale.dtype], **tile,
    )  # fmt: skip

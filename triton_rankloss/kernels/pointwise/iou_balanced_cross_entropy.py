"""IoU-balanced softmax cross-entropy on the GPU: one pass over the rows for the sums, one for the gradient.

    loss = (sum_j l_j + Z sum_i u_i^eta l_i) / avg_factor,   Z = sum_i l_i / (sum_i u_i^eta l_i + 1e-6)
over background rows j and rows i of other labels; labels below 0 are ignored, and their rows not read.
softmax.py has l and its gradient. The gradient of l_j is multiplied by scale[0], of l_i by u_i^eta scale[1].

    symbol               meaning
    partial [4, R]       sum_j l_j, sum_i l_i, sum_i u_i^eta l_i, and number of rows that are not ignored, of every
                         R-th tile of rows

    owner of outputs     _sums_kernel r: partial[:, r];  _gradient_kernel b: the gradient of tile b
                         loss and scale: balance.py
    accumulation         in a program in float32 (float64 for float64 logits), across programs in float64
    order of every sum   fixed by the shapes alone: results are bitwise the same on any device, in any run
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ..arithmetic import number
from ..candidates import TRITON_DTYPE
from .balance import balance, iou_weights
from .softmax import cross_entropy, num_programs_of, store_gradient, tile_of


@triton.jit
def _sums_kernel(
    logits_ptr,
    labels_ptr,
    iou_ptr,
    partial_ptr,
    num_rows,
    background,
    eta: tl.float64,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sums over every num_programs-th tile of rows."""
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    eta = number(eta, COMPUTE)
    sum_negatives = tl.zeros([ROWS], COMPUTE)
    sum_positives = tl.zeros([ROWS], COMPUTE)
    sum_weighted = tl.zeros([ROWS], COMPUTE)
    num_used = tl.zeros([ROWS], tl.int32)
    for tile in range(program, tl.cdiv(num_rows, ROWS), num_programs):
        rows = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        labels = tl.load(labels_ptr + rows, mask=rows < num_rows, other=-1)
        used = labels >= 0
        terms = cross_entropy(logits_ptr, rows, labels, used, COLS, NUM_CHANNELS, COMPUTE)
        positive = used & (labels != background)
        sum_negatives += tl.where(labels == background, terms, 0)
        num_used += used.to(tl.int32)
        if tl.max(positive.to(tl.int32)) > 0:
            weights = iou_weights(tl.load(iou_ptr + rows, mask=positive, other=0).to(COMPUTE), eta)
            sum_positives += tl.where(positive, terms, 0)
            sum_weighted += tl.where(positive, terms * weights, 0)
    own_ptr = partial_ptr + program
    tl.store(own_ptr, tl.sum(sum_negatives))
    tl.store(own_ptr + num_programs, tl.sum(sum_positives))
    tl.store(own_ptr + 2 * num_programs, tl.sum(sum_weighted))
    tl.store(own_ptr + 3 * num_programs, tl.sum(num_used))


@triton.jit
def _gradient_kernel(
    logits_ptr,
    labels_ptr,
    iou_ptr,
    scale_ptr,
    upstream_ptr,
    gradient_ptr,
    num_rows,
    background,
    eta: tl.float64,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of a tile of rows."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_range = rows < num_rows
    labels = tl.load(labels_ptr + rows, mask=in_range, other=-1)
    used = labels >= 0
    positive = used & (labels != background)
    upstream = tl.load(upstream_ptr).to(tl.float64)
    factors = tl.where(labels == background, (tl.load(scale_ptr) * upstream).to(COMPUTE), 0)
    if tl.max(positive.to(tl.int32)) > 0:
        weights = iou_weights(tl.load(iou_ptr + rows, mask=positive, other=0).to(COMPUTE), number(eta, COMPUTE))
        of_positives = weights.to(tl.float64) * (tl.load(scale_ptr + 1) * upstream)
        factors = tl.where(positive, of_positives.to(COMPUTE), factors)
    store_gradient(logits_ptr, gradient_ptr, rows, labels, in_range, used, factors, COLS, NUM_CHANNELS, COMPUTE)


def forward(
    logits: Tensor,
    labels: Tensor,
    iou: Tensor,
    eta: float,
    background: int,
    avg_number: float | None,
    avg_tensor: Tensor | None,
    group: str | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, scale [2]) of logits [..., K]; `labels` and `iou` [...]."""
    num_channels, num_rows = logits.shape[-1], labels.numel()
    tile = tile_of(num_channels)
    num_programs = num_programs_of(num_rows, tile)
    dtype = result_dtype(logits)
    partial = torch.empty(4, num_programs, dtype=dtype, device=logits.device)
    if num_programs > 0:
        _sums_kernel[num_programs,](
            logits.contiguous(),
            labels.contiguous(),
            iou.contiguous(),
            partial,
            num_rows=num_rows,
            background=background % num_channels,
            eta=eta,
            COMPUTE=TRITON_DTYPE[dtype],
            **tile,
        )
    return balance(partial, (1.0, 1.0), avg_number, avg_tensor, group)


def backward(
    logits: Tensor, labels: Tensor, iou: Tensor, scale: Tensor, upstream: Tensor, eta: float, background: int
) -> Tensor:
    """Gradient of the logits."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    num_channels, num_rows = logits.shape[-1], labels.numel()
    tile = tile_of(num_channels)
    if num_rows > 0:
        _gradient_kernel[triton.cdiv(num_rows, tile["ROWS"]),](
            logits.contiguous(),
            labels.contiguous(),
            iou.contiguous(),
            scale,
            upstream,
            gradient,
            num_rows=num_rows,
            background=background % num_channels,
            eta=eta,
            COMPUTE=TRITON_DTYPE[result_dtype(logits)],
            **tile,
        )
    return gradient

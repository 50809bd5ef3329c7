"""IoU-balanced smooth L1 loss of box offsets, d = pred - target, and the smooth L1 terms that other losses share.

    loss = loss_weight / divisor sum_i u_i^lambda sum_c smooth(d_ic)
    smooth(d) = q (|d| - q beta / 2),  q = min(|d| / beta, 1);    slope(d) = clip(d / beta, -1, 1)

A beta of 0 is read as the smallest positive number that is exact: then q = 1, and the slope is the sign of d.

    symbol               meaning
    pred, target [P, D]  contiguous, D a constant; a tile holds ROWS of them
    iou [P]              u_i; below 0 it counts as 0
    divisor              a number, unless divisor_ptr holds it on the device: nothing waits for the host

    owner of outputs     forward, program t: partial[t], the sum over tile t; then one program: the loss
                         backward, program t: the gradient of tile t
    accumulation         within a tile in float32 (float64 where pred or target is), across tiles in float64
    order of every sum   fixed by the shapes alone: results are bitwise the same in any run
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ..arithmetic import bounded, number
from ..candidates import TRITON_DTYPE
from .balance import iou_weights, sum_programs
from .rows import load_rows, store_rows

# Values of a tile: 8 a thread of each tensor, two 16-byte loads in float32. Not yet measured on a GPU.
TILE_VALUES = 1024
SUM_BLOCK = 1024  # partial sums that the one program of the second kernel adds at a time


@triton.jit
def smooth_l1(d, beta):
    """The loss of differences d."""
    q = tl.minimum(tl.abs(d) / beta, 1.0)
    return q * (tl.abs(d) - q * beta * 0.5)


@triton.jit
def smooth_l1_slope(d, beta):
    """The derivative of the loss in d."""
    return bounded(d / beta, 1.0)


def positive_beta(beta: float, dtype: torch.dtype) -> float:
    """`beta`, or what stands for 0 in kernels that compute in `dtype`."""
    return max(beta, torch.finfo(dtype).tiny)


@triton.jit
def _load_weights(iou_ptr, first, num_rows, lambda_, ROWS: tl.constexpr, COMPUTE: tl.constexpr):
    """u_i^lambda of a tile."""
    i = first + tl.arange(0, ROWS)
    return iou_weights(tl.load(iou_ptr + i, mask=i < num_rows, other=0).to(COMPUTE), number(lambda_, COMPUTE))


@triton.jit
def _load_factor(loss_weight, divisor, divisor_ptr, DTYPE: tl.constexpr):
    """loss_weight / divisor."""
    if divisor_ptr is not None:
        divisor = tl.load(divisor_ptr).to(tl.float64)
    return number(loss_weight, DTYPE) / number(divisor, DTYPE)


@triton.jit
def _sums_kernel(
    pred_ptr,
    target_ptr,
    iou_ptr,
    partial_ptr,
    num_rows,
    lambda_: tl.float64,
    beta: tl.float64,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Sum over a tile of rows."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    d = load_rows(pred_ptr, first, num_rows, ROWS, D, COMPUTE)
    d -= load_rows(target_ptr, first, num_rows, ROWS, D, COMPUTE)
    weights = _load_weights(iou_ptr, first, num_rows, lambda_, ROWS, COMPUTE)
    terms = weights * tl.sum(smooth_l1(d, number(beta, COMPUTE)), 1)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(terms))


@triton.jit
def _total_kernel(
    partial_ptr,
    divisor_ptr,
    loss_ptr,
    num_partial,
    loss_weight: tl.float64,
    divisor: tl.float64,
    BLOCK: tl.constexpr,
):
    """The loss."""
    total = sum_programs(partial_ptr, 0, num_partial, BLOCK)
    total *= _load_factor(loss_weight, divisor, divisor_ptr, tl.float64)
    tl.store(loss_ptr, total.to(loss_ptr.dtype.element_ty))


@triton.jit
def _gradient_kernel(
    pred_ptr,
    target_ptr,
    iou_ptr,
    upstream_ptr,
    divisor_ptr,
    gradient_ptr,
    num_rows,
    lambda_: tl.float64,
    beta: tl.float64,
    loss_weight: tl.float64,
    divisor: tl.float64,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of a tile of rows."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    d = load_rows(pred_ptr, first, num_rows, ROWS, D, COMPUTE)
    d -= load_rows(target_ptr, first, num_rows, ROWS, D, COMPUTE)
    weights = _load_weights(iou_ptr, first, num_rows, lambda_, ROWS, COMPUTE)
    weights *= tl.load(upstream_ptr).to(COMPUTE) * _load_factor(loss_weight, divisor, divisor_ptr, COMPUTE)
    store_rows(gradient_ptr, first, num_rows, weights[:, None] * smooth_l1_slope(d, number(beta, COMPUTE)), ROWS, D)


def rows_of_tile(num_columns: int) -> int:
    """How many rows a tile has."""
    return TILE_VALUES // triton.next_power_of_2(max(1, num_columns))


def forward(
    pred: Tensor,
    target: Tensor,
    iou: Tensor,
    lambda_: float,
    beta: float,
    loss_weight: float,
    avg_number: float | None,
    avg_tensor: Tensor | None,
) -> Tensor:
    """Loss of pred, target [P, D] and iou [P]; divided by the tensor or number, without both by P, at least by 1."""
    dtype = result_dtype(pred, target)
    num_rows, num_columns = pred.shape
    rows = rows_of_tile(num_columns)
    num_partial = triton.cdiv(num_rows, rows) if num_columns > 0 else 0
    partial = torch.empty(num_partial, dtype=dtype, device=pred.device)
    if num_partial > 0:
        _sums_kernel[num_partial,](
            pred.contiguous(),
            target.contiguous(),
            iou.contiguous(),
            partial,
            num_rows=num_rows,
            lambda_=lambda_,
            beta=positive_beta(beta, dtype),
            ROWS=rows,
            D=num_columns,
            COMPUTE=TRITON_DTYPE[dtype],
        )
    loss = torch.empty((), dtype=dtype, device=pred.device)
    _total_kernel[1,](
        partial,
        avg_tensor,
        loss,
        num_partial=num_partial,
        loss_weight=loss_weight,
        divisor=_default_divisor(num_rows) if avg_number is None else avg_number,
        BLOCK=SUM_BLOCK,
    )
    return loss


def backward(
    pred: Tensor,
    target: Tensor,
    iou: Tensor,
    upstream: Tensor,
    lambda_: float,
    beta: float,
    loss_weight: float,
    avg_number: float | None,
    avg_tensor: Tensor | None,
) -> Tensor:
    """Gradient of `pred`, in its dtype."""
    gradient = torch.empty_like(pred, memory_format=torch.contiguous_format)
    if gradient.numel() > 0:
        dtype = result_dtype(pred, target)
        num_rows, num_columns = pred.shape
        rows = rows_of_tile(num_columns)
        _gradient_kernel[triton.cdiv(num_rows, rows),](
            pred.contiguous(),
            target.contiguous(),
            iou.contiguous(),
            upstream,
            avg_tensor,
            gradient,
            num_rows=num_rows,
            lambda_=lambda_,
            beta=positive_beta(beta, dtype),
            loss_weight=loss_weight,
            divisor=_default_divisor(num_rows) if avg_number is None else avg_number,
            ROWS=rows,
            D=num_columns,
            COMPUTE=TRITON_DTYPE[dtype],
        )
    return gradient


def _default_divisor(num_rows: int) -> float:
    return float(max(1, num_rows))

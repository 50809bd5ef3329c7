"""The localization loss of each positive that harmonic detection takes: of its box, and of its box offsets if given.

    l_i = sum_c smooth_l1(delta_ic) + iou_weight (1 + IoU_i)^gamma (1 - IoU_i),     delta = pred_deltas - target_deltas

iou_balanced_smooth_l1.py has smooth_l1, boxes.py the IoU part; both have the derivatives.

    symbol               meaning
    boxes [P, 4]         contiguous; deltas [P, D] too, or absent: D = 0
    upstream             of row i at i * upstream_stride: stride 0 where all rows have the same, as in a sum

    owner of outputs     program t: rows t * ROWS and the following, of the losses or of both gradients
    accumulation         float32 (float64 where any argument is float64); nothing is summed over rows
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ..arithmetic import number
from ..candidates import TRITON_DTYPE
from .box_geometry import load_corners, store_corners
from .boxes import BOXES_BLOCK, box_gradients, box_losses
from .iou_balanced_smooth_l1 import positive_beta, rows_of_tile, smooth_l1, smooth_l1_slope
from .rows import load_rows, store_rows, upstream_and_stride


@triton.jit
def _localization_kernel(
    pred_boxes_ptr,
    target_boxes_ptr,
    pred_deltas_ptr,
    target_deltas_ptr,
    losses_ptr,
    num_rows,
    beta: tl.float64,
    iou_weight: tl.float64,
    gamma: tl.float64,
    eps: tl.float64,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Losses of a tile of rows."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    a1, a2 = load_corners(pred_boxes_ptr, first, num_rows, ROWS, COMPUTE)
    b1, b2 = load_corners(target_boxes_ptr, first, num_rows, ROWS, COMPUTE)
    losses = box_losses(a1, a2, b1, b2, number(gamma, COMPUTE), number(eps, COMPUTE), "harmonic")
    losses *= number(iou_weight, COMPUTE)
    if D > 0:
        d = load_rows(pred_deltas_ptr, first, num_rows, ROWS, D, COMPUTE)
        d -= load_rows(target_deltas_ptr, first, num_rows, ROWS, D, COMPUTE)
        # Adding 0 first: lanes that share a sum of products would each fuse another product with it.
        losses += tl.sum(smooth_l1(d, number(beta, COMPUTE)) + 0.0, 1)
    i = first + tl.arange(0, ROWS)
    tl.store(losses_ptr + i, losses, mask=i < num_rows)


@triton.jit
def _localization_backward_kernel(
    pred_boxes_ptr,
    target_boxes_ptr,
    pred_deltas_ptr,
    target_deltas_ptr,
    upstream_ptr,
    grad_boxes_ptr,
    grad_deltas_ptr,
    upstream_stride,
    num_rows,
    beta: tl.float64,
    iou_weight: tl.float64,
    gamma: tl.float64,
    eps: tl.float64,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Both gradients of a tile of rows."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    a1, a2 = load_corners(pred_boxes_ptr, first, num_rows, ROWS, COMPUTE)
    b1, b2 = load_corners(target_boxes_ptr, first, num_rows, ROWS, COMPUTE)
    i = first + tl.arange(0, ROWS)
    upstream = tl.load(upstream_ptr + i * upstream_stride, mask=i < num_rows, other=0).to(COMPUTE)[:, None]
    lower, upper = box_gradients(a1, a2, b1, b2, number(gamma, COMPUTE), number(eps, COMPUTE), "harmonic")
    factor = upstream * number(iou_weight, COMPUTE)
    store_corners(grad_boxes_ptr, first, num_rows, factor * lower, factor * upper, ROWS)
    if D > 0:
        d = load_rows(pred_deltas_ptr, first, num_rows, ROWS, D, COMPUTE)
        d -= load_rows(target_deltas_ptr, first, num_rows, ROWS, D, COMPUTE)
        store_rows(grad_deltas_ptr, first, num_rows, upstream * smooth_l1_slope(d, number(beta, COMPUTE)), ROWS, D)


def localization_loss(
    pred_boxes: Tensor,
    target_boxes: Tensor,
    pred_deltas: Tensor | None,
    target_deltas: Tensor | None,
    beta: float,
    iou_weight: float,
    gamma: float,
    eps: float,
) -> Tensor:
    """l [P]."""
    tensors = [_contiguous(tensor) for tensor in (pred_boxes, target_boxes, pred_deltas, target_deltas)]
    dtype = result_dtype(*tensors)
    losses = torch.empty(pred_boxes.shape[:-1], dtype=dtype, device=pred_boxes.device)
    if losses.numel() > 0:
        num_columns = 0 if pred_deltas is None else pred_deltas.shape[1]
        rows = _rows_of_tile(num_columns)
        _localization_kernel[triton.cdiv(losses.numel(), rows),](
            *tensors,
            losses,
            num_rows=losses.numel(),
            beta=positive_beta(beta, dtype),
            iou_weight=iou_weight,
            gamma=gamma,
            eps=eps,
            ROWS=rows,
            D=num_columns,
            COMPUTE=TRITON_DTYPE[dtype],
        )
    return losses


def localization_loss_backward(
    pred_boxes: Tensor,
    target_boxes: Tensor,
    pred_deltas: Tensor | None,
    target_deltas: Tensor | None,
    upstream: Tensor,
    beta: float,
    iou_weight: float,
    gamma: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of `pred_boxes` and of `pred_deltas`, in their dtypes; the second is empty without deltas."""
    tensors = [_contiguous(tensor) for tensor in (pred_boxes, target_boxes, pred_deltas, target_deltas)]
    grad_boxes = torch.empty_like(pred_boxes, memory_format=torch.contiguous_format)
    if pred_deltas is None:
        num_columns, grad_deltas = 0, pred_boxes.new_empty(0)
    else:
        num_columns = pred_deltas.shape[1]
        grad_deltas = torch.empty_like(pred_deltas, memory_format=torch.contiguous_format)
    if grad_boxes.numel() > 0:
        dtype = result_dtype(*tensors)
        rows = _rows_of_tile(num_columns)
        upstream, stride = upstream_and_stride(upstream)
        _localization_backward_kernel[triton.cdiv(upstream.numel(), rows),](
            *tensors,
            upstream,
            grad_boxes,
            grad_deltas,
            upstream_stride=stride,
            num_rows=upstream.numel(),
            beta=positive_beta(beta, dtype),
            iou_weight=iou_weight,
            gamma=gamma,
            eps=eps,
            ROWS=rows,
            D=num_columns,
            COMPUTE=TRITON_DTYPE[dtype],
        )
    return grad_boxes, grad_deltas


def _rows_of_tile(num_columns: int) -> int:
    return min(BOXES_BLOCK, rows_of_tile(num_columns))


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()

"""Harmonic loss of single positives, and the localization loss that harmonic detection feeds into it.

    h = (1 + exp(-l)) c + (1 + exp(-c)) l      of classification loss c and localization loss l
    dh/dc = 1 + exp(-l) - l exp(-c),   dh/dl = 1 + exp(-c) - c exp(-l)     (factors constant: without the last terms)

    l_i = sum_c smooth_l1(delta_ic) + iou_weight (1 + IoU_i)^gamma (1 - IoU_i)

smooth_l1 is that of iou_balanced_smooth_l1.py, the IoU part and its gradient are those of boxes.py.

    symbol               meaning
    boxes [P, 4]         contiguous; deltas [P, D] too, or absent: D = 0
    upstream             of row i at i * upstream_stride: stride 0 where all rows have the same, as in a sum

    owner of outputs     program t: rows t * BLOCK and the following, of both gradients
    accumulation         float32 (float64 where any argument is float64); nothing is summed over rows
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ..arithmetic import number
from ..candidates import TRITON_DTYPE
from .boxes import BOXES_BLOCK, box_gradients, box_losses, load_corners, store_corners
from .iou_balanced_smooth_l1 import positive_beta, rows_of_tile, smooth_l1, smooth_l1_slope
from .rows import load_rows, rounded, store_rows, upstream_and_stride

BLOCK = 1024  # losses per program: 8 a thread, two 16-byte loads of each in float32. Not yet measured on a GPU.


@triton.jit
def harmonic(c, loc):
    """The loss h."""
    return (1 + tl.exp(-loc)) * c + (1 + tl.exp(-c)) * loc


@triton.jit
def harmonic_slopes(c, loc, DETACH: tl.constexpr):
    """(dh/dc, dh/dl)."""
    of_c, of_loc = tl.exp(-loc), tl.exp(-c)
    if DETACH:
        return 1 + of_c, 1 + of_loc
    return 1 + of_c - loc * of_loc, 1 + of_loc - c * of_c


@triton.jit
def add_positives(c, localization_ptr, weights_ptr, i, num_positives, DETACH: tl.constexpr):
    """h of the positives i, 0 behind the last; stores its derivatives."""
    there = i < num_positives
    loc = tl.load(localization_ptr + i, mask=there, other=0).to(c.dtype)
    of_c, of_loc = harmonic_slopes(c, loc, DETACH)
    tl.store(weights_ptr + i, of_c, mask=there)
    tl.store(weights_ptr + num_positives + i, of_loc, mask=there)
    return tl.where(there, harmonic(c, loc), 0)


@triton.jit
def _harmonic_kernel(c_ptr, loc_ptr, losses_ptr, num_losses, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.load(c_ptr + i, mask=i < num_losses, other=0).to(COMPUTE)
    loc = tl.load(loc_ptr + i, mask=i < num_losses, other=0).to(COMPUTE)
    tl.store(losses_ptr + i, harmonic(c, loc), mask=i < num_losses)


@triton.jit
def _harmonic_backward_kernel(
    c_ptr, loc_ptr, upstream_ptr, of_c_ptr, of_loc_ptr, upstream_stride, num_losses,
    BLOCK: tl.constexpr, DETACH: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.load(c_ptr + i, mask=i < num_losses, other=0).to(COMPUTE)
    loc = tl.load(loc_ptr + i, mask=i < num_losses, other=0).to(COMPUTE)
    upstream = tl.load(upstream_ptr + i * upstream_stride, mask=i < num_losses, other=0).to(COMPUTE)
    of_c, of_loc = harmonic_slopes(c, loc, DETACH)
    tl.store(of_c_ptr + i, rounded(upstream * of_c, of_c_ptr), mask=i < num_losses)
    tl.store(of_loc_ptr + i, rounded(upstream * of_loc, of_loc_ptr), mask=i < num_losses)


@triton.jit
def _localization_kernel(
    pred_ptr, target_ptr, pred_deltas_ptr, target_deltas_ptr, losses_ptr, num_rows, beta: tl.float64,
    iou_weight: tl.float64, gamma: tl.float64, eps: tl.float64,
    ROWS: tl.constexpr, D: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    a1, a2 = load_corners(pred_ptr, first, num_rows, ROWS, COMPUTE)
    b1, b2 = load_corners(target_ptr, first, num_rows, ROWS, COMPUTE)
    losses = box_losses(a1, a2, b1, b2, number(gamma, COMPUTE), number(eps, COMPUTE), "harmonic")
    losses *= number(iou_weight, COMPUTE)
    if D > 0:
        d = load_rows(pred_deltas_ptr, first, num_rows, ROWS, D, COMPUTE)
        d -= load_rows(target_deltas_ptr, first, num_rows, ROWS, D, COMPUTE)
        losses += tl.sum(smooth_l1(d, number(beta, COMPUTE)), 1)
    i = first + tl.arange(0, ROWS)
    tl.store(losses_ptr + i, losses, mask=i < num_rows)


@triton.jit
def _localization_backward_kernel(
    pred_ptr, target_ptr, pred_deltas_ptr, target_deltas_ptr, upstream_ptr, of_boxes_ptr, of_deltas_ptr,
    upstream_stride, num_rows, beta: tl.float64, iou_weight: tl.float64, gamma: tl.float64, eps: tl.float64,
    ROWS: tl.constexpr, D: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * ROWS
    a1, a2 = load_corners(pred_ptr, first, num_rows, ROWS, COMPUTE)
    b1, b2 = load_corners(target_ptr, first, num_rows, ROWS, COMPUTE)
    i = first + tl.arange(0, ROWS)
    upstream = tl.load(upstream_ptr + i * upstream_stride, mask=i < num_rows, other=0).to(COMPUTE)[:, None]
    lower, upper = box_gradients(a1, a2, b1, b2, number(gamma, COMPUTE), number(eps, COMPUTE), "harmonic")
    of_iou = upstream * number(iou_weight, COMPUTE)
    store_corners(of_boxes_ptr, first, num_rows, of_iou * lower, of_iou * upper, ROWS)
    if D > 0:
        d = load_rows(pred_deltas_ptr, first, num_rows, ROWS, D, COMPUTE)
        d -= load_rows(target_deltas_ptr, first, num_rows, ROWS, D, COMPUTE)
        store_rows(of_deltas_ptr, first, num_rows, upstream * smooth_l1_slope(d, number(beta, COMPUTE)), ROWS, D)


def harmonic_loss(classification: Tensor, localization: Tensor, detach_factors: bool) -> Tensor:
    """h, of the shape of both; see `reference.harmonic.harmonic_forward`."""
    dtype = result_dtype(classification, localization)
    losses = torch.empty(classification.shape, dtype=dtype, device=classification.device)
    if losses.numel() > 0:
        _harmonic_kernel[(triton.cdiv(losses.numel(), BLOCK),)](
            classification.contiguous(), localization.contiguous(), losses, losses.numel(), BLOCK=BLOCK,
            COMPUTE=TRITON_DTYPE[dtype],
        )  # fmt: skip
    return losses


def harmonic_loss_backward(
    classification: Tensor, localization: Tensor, upstream: Tensor, detach_factors: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of both, in their dtypes; see `reference.harmonic.harmonic_backward`."""
    of_c = torch.empty_like(classification, memory_format=torch.contiguous_format)
    of_loc = torch.empty_like(localization, memory_format=torch.contiguous_format)
    if of_c.numel() > 0:
        upstream, stride = upstream_and_stride(upstream)
        _harmonic_backward_kernel[(triton.cdiv(of_c.numel(), BLOCK),)](
            classification.contiguous(), localization.contiguous(), upstream, of_c, of_loc, stride, of_c.numel(),
            BLOCK=BLOCK, DETACH=detach_factors, COMPUTE=TRITON_DTYPE[result_dtype(classification, localization)],
        )  # fmt: skip
    return of_c, of_loc


def _localization_constants(*tensors: Tensor | None) -> dict[str, object]:
    pred_deltas = tensors[2]
    num_columns = 0 if pred_deltas is None else pred_deltas.shape[1]
    rows = min(BOXES_BLOCK, rows_of_tile(num_columns))
    return {"ROWS": rows, "D": num_columns, "COMPUTE": TRITON_DTYPE[result_dtype(*tensors)]}


def localization_loss(
    pred_boxes: Tensor, target_boxes: Tensor, pred_deltas: Tensor | None, target_deltas: Tensor | None, beta: float,
    iou_weight: float, gamma: float, eps: float,
) -> Tensor:  # fmt: skip
    """l [P]; see `reference.harmonic_detection.localization_forward`."""
    tensors = [_contiguous(tensor) for tensor in (pred_boxes, target_boxes, pred_deltas, target_deltas)]
    dtype = result_dtype(*tensors)
    losses = torch.empty(pred_boxes.shape[:-1], dtype=dtype, device=pred_boxes.device)
    if losses.numel() > 0:
        constants = _localization_constants(*tensors)
        _localization_kernel[(triton.cdiv(losses.numel(), constants["ROWS"]),)](
            *tensors, losses, losses.numel(), positive_beta(beta, dtype), iou_weight, gamma, eps, **constants
        )
    return losses


def localization_loss_backward(
    pred_boxes: Tensor, target_boxes: Tensor, pred_deltas: Tensor | None, target_deltas: Tensor | None,
    upstream: Tensor, beta: float, iou_weight: float, gamma: float, eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of `pred_boxes` and `pred_deltas`; see `reference.harmonic_detection.localization_backward`."""
    tensors = [_contiguous(tensor) for tensor in (pred_boxes, target_boxes, pred_deltas, target_deltas)]
    of_boxes = torch.empty_like(pred_boxes, memory_format=torch.contiguous_format)
    of_deltas = (
        pred_boxes.new_empty(0)
        if pred_deltas is None
        else torch.empty_like(pred_deltas, memory_format=torch.contiguous_format)
    )
    if of_boxes.numel() > 0:
        constants = _localization_constants(*tensors)
        upstream, stride = upstream_and_stride(upstream)
        _localization_backward_kernel[(triton.cdiv(upstream.numel(), constants["ROWS"]),)](
            *tensors, upstream, of_boxes, of_deltas, stride, upstream.numel(),
            positive_beta(beta, result_dtype(*tensors)), iou_weight, gamma, eps, **constants,
        )  # fmt: skip
    return of_boxes, of_deltas


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()

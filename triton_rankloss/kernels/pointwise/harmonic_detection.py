"""Harmonic detection loss on the GPU, from the localization losses l_i: one pass for the sums, one for the gradient.

    loss = (sum_i h(c_i, l_i) + sum_j c_j) / avg_factor      h and its derivatives: harmonic.py
    sigmoid    c = weight sigmoid(-s)^gamma softplus(-s) of a logit, s = x for a positive, -x for a negative
    softmax    c of a row of logits: softmax.py; negatives are the rows of the background
The gradient of c_j is multiplied by scale = 1 / avg_factor, of c_i by scale dh/dc_i. The task-contrastive terms, if
asked for, are added to the sum of h; their gradient is joined in task_contrastive_gradient.py.

Which logits are negatives is read from the targets, in one pass over the logits. The positives are listed: the same
programs take them from the list afterwards, so that no program needs to know the place of a positive in the list.

    symbol               meaning
    partial [3, R]       sum_j c_j without weight, sum_i h, for softmax the number of rows that are not ignored
    slopes [2, P]        scale dh/dc_i, scale dh/dl_i

    owner of outputs     _sums_kernel r: partial[:, r], and slopes, without scale, of every R-th tile of positives
                         _scale_kernel t: tile t of slopes, times scale; t = 0: loss and scale
                         _gradient_kernel t: of the positives in tile t; behind the last, of the rest of a block
                         harmonic_detection_sigmoid.py and harmonic_detection_softmax.py have the first and the last
    accumulation         in a program in float32 (float64 for float64 logits), across programs in float64
    order of every sum   fixed by the shapes alone: results are bitwise the same on any device, in any run
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ...targets import background_flags
from ..grid import cdiv
from . import task_contrastive
from .balance import SUM_WARPS, SUMS_AT_ONCE, load_divisor, sum_programs
from .harmonic_detection_sigmoid import store_sigmoid_gradient, sum_sigmoid
from .harmonic_detection_softmax import store_softmax_gradient, sum_softmax
from .task_contrastive_gradient import join


@triton.jit
def _scale_kernel(
    partial_ptr,
    avg_ptr,
    loss_ptr,
    scale_ptr,
    slopes_ptr,
    terms_ptr,
    num_programs,
    num_positives,
    negative_weight: tl.float64,
    task_weight: tl.float64,
    avg_number: tl.float64,
    HAS_NUMBER: tl.constexpr,
    SOFTMAX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Loss and scale, and the slopes times scale."""
    default = tl.full([], 0, tl.float64) + num_positives
    if SOFTMAX:
        default = sum_programs(partial_ptr, 2, num_programs, BLOCK)
    scale = 1 / load_divisor(avg_ptr, avg_number, default, HAS_NUMBER)
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    slopes = tl.load(slopes_ptr + k, mask=k < 2 * num_positives, other=0)
    tl.store(slopes_ptr + k, slopes.to(tl.float64) * scale, mask=k < 2 * num_positives)
    if tl.program_id(0) == 0:
        total = negative_weight * sum_programs(partial_ptr, 0, num_programs, BLOCK)
        total += sum_programs(partial_ptr, 1, num_programs, BLOCK)
        if terms_ptr is not None:
            total += task_weight * sum_programs(terms_ptr, 0, num_positives, BLOCK)
        tl.store(loss_ptr, scale * total)
        tl.store(scale_ptr, scale)


def forward(
    logits: Tensor,
    targets: Tensor,
    positions: Tensor,
    localization: Tensor,
    iou: Tensor | None,
    activation: str,
    background: int,
    negative_weight: float,
    positive_weight: float,
    gamma: float,
    margin: float,
    task_weight: float,
    detach_factors: bool,
    avg_number: float | None,
    avg_tensor: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, scale [], slopes [2, P], background flags); `iou` [P] joins the task-contrastive term."""
    dtype, device = result_dtype(logits), logits.device
    num_positives = positions.numel()
    loss, scale = torch.empty((), dtype=dtype, device=device), torch.empty((), dtype=dtype, device=device)
    slopes = torch.empty(2, num_positives, dtype=dtype, device=device)
    positives = positions.contiguous(), localization.contiguous(), slopes
    flags = background_flags(logits if activation == "sigmoid" else logits[:0])
    if activation == "softmax":
        partial = sum_softmax(logits, targets, *positives, background, detach_factors)
    else:
        partial = sum_sigmoid(logits, targets, *positives, flags, positive_weight, gamma, detach_factors)
    terms = None if iou is None else task_contrastive.forward(logits, positions, iou, margin, activation)
    _scale_kernel[max(1, cdiv(2 * num_positives, SUMS_AT_ONCE)),](
        partial,
        avg_tensor,
        loss,
        scale,
        slopes,
        terms,
        num_programs=partial.shape[1],
        num_positives=num_positives,
        negative_weight=negative_weight,
        task_weight=task_weight,
        avg_number=avg_number or 0.0,
        HAS_NUMBER=avg_number is not None,
        SOFTMAX=activation == "softmax",
        BLOCK=SUMS_AT_ONCE,
        num_warps=SUM_WARPS,
    )
    return loss, scale, slopes, flags


def backward(
    logits: Tensor,
    targets: Tensor,
    positions: Tensor,
    iou: Tensor | None,
    scale: Tensor,
    slopes_c: Tensor,
    flags: Tensor,
    upstream: Tensor,
    activation: str,
    background: int,
    negative_weight: float,
    positive_weight: float,
    gamma: float,
    margin: float,
    task_weight: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits and of `iou`; `slopes_c` are slopes[0], for the classification losses."""
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if logits.numel() == 0:
        return gradient, logits.new_empty(0) if iou is None else torch.empty_like(iou)
    positions, slopes_c, focal = (
        positions.contiguous(),
        slopes_c.contiguous(),
        (negative_weight, positive_weight, gamma),
    )
    if activation == "softmax":
        store_softmax_gradient(logits, targets, positions, scale, slopes_c, upstream, gradient, background)
    else:
        store_sigmoid_gradient(logits, targets, positions, scale, slopes_c, flags, upstream, gradient, *focal)
    if iou is None:
        return gradient, logits.new_empty(0)
    positives = positions, iou, scale, slopes_c
    return gradient, join(gradient, logits, targets, *positives, upstream, activation, *focal, margin, task_weight)

"""Task-contrastive loss on the GPU: rows of the positives' anchors, one pass each way.

    t = r w,   r = max(0, |p - u| - margin),   w = 1 / (1 + exp(H))
    dt/dx_c = g dp/dx_c - r w (1 - w) dH/dx_c,   dt/du = -g,   g = w [r > 0] sign(p - u)
with p the probability of the positive's channel, u its IoU, H the entropy of the prediction at its anchor.
    sigmoid    H = sum_c log1p(e_c) + |x_c| sigmoid(-|x_c|), e = exp(-|x|);   dH/dx_c = -x_c sigmoid'(x_c)
               dp/dx_c = [c = own] sigmoid'(x_c)
    softmax    with m and t of softmax.py,   log p_c = x_c - m - log t;   H = log t - sum_c exp(x_c - m) (x_c - m) / t
               dH/dx_c = -p_c (log p_c + H),   dp/dx_c = p ([c = own] - p_c)

task_contrastive_gradient.py has the gradient.

    symbol               meaning
    i                    positives, listed by position

    owner of outputs     program t: losses of the positives in tile t
    accumulation         float32 (float64 where logits or IoU are float64)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ...targets import check_count
from ..arithmetic import clamp_infinities, exponential, log1p, number, reciprocal
from ..candidates import TRITON_DTYPE
from .softmax import load_channels, log_sum_exp, tile_of


@triton.jit
def sigmoid_parts(x):
    """(exp(-|x|), sigmoid(-|x|), the derivative of sigmoid)."""
    e = exponential(-tl.abs(x))
    r = reciprocal(1 + e)
    return e, e * r, e * r * r


@triton.jit
def entropy_of(
    logits_ptr,
    rows,
    used,
    SOFTMAX: tl.constexpr,
    COLS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """(H, m, log t) of rows [ROWS]; for sigmoid (H, 0, 0)."""
    # Of each column, summed once at the end: lanes that share a sum of products would each fuse another one with it.
    sums = tl.zeros([rows.shape[0], COLS], COMPUTE)
    if SOFTMAX:
        m, t = log_sum_exp(logits_ptr, rows, used, COLS, NUM_CHANNELS, COMPUTE)
        for start in range(0, NUM_CHANNELS, COLS):
            c, x = load_channels(logits_ptr, rows, used, start, COLS, NUM_CHANNELS, COMPUTE)
            below = tl.where((c < NUM_CHANNELS)[None, :], x - m[:, None], 0)
            sums += exponential(x - m[:, None]) * below
        return tl.log(t) - tl.sum(sums, 1) / t, m, tl.log(t)
    for start in range(0, NUM_CHANNELS, COLS):
        c, x = load_channels(logits_ptr, rows, used, start, COLS, NUM_CHANNELS, COMPUTE)
        x = tl.where((c < NUM_CHANNELS)[None, :], x, 0)
        e, tail, _ = sigmoid_parts(x)
        sums += tl.where((c < NUM_CHANNELS)[None, :], log1p(e) + tl.abs(x) * tail, 0)
    return tl.sum(sums, 1), tl.zeros(rows.shape, COMPUTE), tl.zeros(rows.shape, COMPUTE)


@triton.jit
def load_positives(
    logits_ptr,
    iou_ptr,
    i,
    positions,
    mask,
    m,
    log_t,
    margin,
    SOFTMAX: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """(r, sign(p - u) where r > 0 else 0, sigmoid'(x) or p) of the positives i."""
    x = clamp_infinities(tl.load(logits_ptr + positions, mask=mask, other=0), COMPUTE)
    if SOFTMAX:
        p = exponential((x - m) - log_t)  # m + log t would lose the digits of log t where m is large
        slope = p
    else:
        _, tail, slope = sigmoid_parts(x)
        p = tl.where(x < 0, tail, 1 - tail)
    offset = p - tl.load(iou_ptr + i, mask=mask, other=0).to(COMPUTE)
    excess = tl.abs(offset) - margin
    r = tl.where(excess < 0, 0, excess)  # NaN stays
    sign = tl.where(r > 0, tl.where(offset < 0, -1.0, 1.0), r)
    return r, sign, slope


@triton.jit
def _forward_kernel(
    logits_ptr,
    positions_ptr,
    iou_ptr,
    losses_ptr,
    num_positives,
    margin: tl.float64,
    SOFTMAX: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Losses of a tile of positives."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_range, margin = i < num_positives, number(margin, COMPUTE)
    positions = tl.load(positions_ptr + i, mask=in_range, other=0)
    rows = positions // NUM_CHANNELS
    entropy, m, log_t = entropy_of(logits_ptr, rows, in_range, SOFTMAX, COLS, NUM_CHANNELS, COMPUTE)
    r, _, _ = load_positives(logits_ptr, iou_ptr, i, positions, in_range, m, log_t, margin, SOFTMAX, COMPUTE)
    tl.store(losses_ptr + i, r / (1 + exponential(entropy)), mask=in_range)


def forward(logits: Tensor, positions: Tensor, iou: Tensor, margin: float, activation: str) -> Tensor:
    """t [P] of the positives at flat `positions`, with their IoU [P]."""
    check_count(iou, positions, "iou")
    dtype = result_dtype(logits, iou)
    losses = torch.empty(iou.shape, dtype=dtype, device=iou.device)
    if iou.numel() > 0:
        tile = tile_of(logits.shape[-1] if logits.dim() > 1 else 1)
        _forward_kernel[triton.cdiv(iou.numel(), tile["ROWS"]),](
            logits.contiguous(),
            positions.contiguous(),
            iou.contiguous(),
            losses,
            num_positives=iou.numel(),
            margin=margin,
            SOFTMAX=activation == "softmax",
            COMPUTE=TRITON_DTYPE[dtype],
            **tile,
        )
    return losses

"""Gradients of the task-contrastive loss, alone or joined with those of harmonic detection; task_contrastive.py has the
mathematics.

Joined, the gradient of a row is the sum of what both losses give to it, rounded once: rows with a positive are written
anew over those of harmonic_detection.py, from which the factors of c_i and c_j come.

    symbol               meaning
    i                    positives, listed by position: those of one anchor (dense targets may have several) follow each
                         other; the first of them owns the row of logits, and adds up what all of them give to it
    upstream             of t_i at i * upstream_stride, times weight; joined: of the loss (stride 0), times weight scale
    bump                 upstream g sigmoid'(x) for sigmoid, upstream g p for softmax: what the own channel receives

    owner of outputs     program t: gradients of the IoU, and rows, of the positives in tile t
    accumulation         float32 (float64 where logits or IoU are float64)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ..arithmetic import clamp_infinities, exponential, number
from ..blocks import num_warps_of
from ..candidates import TRITON_DTYPE, scopes_of
from ..grid import cdiv
from .focal import focal_slope, power_of
from .rows import round_to
from .softmax import load_channels, tile_of
from .task_contrastive import entropy_of, load_positives, sigmoid_parts


@triton.jit
def _of_negatives(
    targets_ptr,
    rows,
    owner,
    x,
    c,
    weight,
    gamma,
    POWER: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    LABELS: tl.constexpr,
):
    """What harmonic detection, sigmoid, gives to the negatives in rows [ROWS] with a positive: [ROWS, COLS]."""
    if LABELS:
        negative = tl.load(targets_ptr + rows, mask=owner, other=0)[:, None] != c[None, :]
    else:
        at = targets_ptr + rows[:, None] * NUM_CHANNELS + c[None, :]
        negative = tl.load(at, mask=owner[:, None] & (c < NUM_CHANNELS)[None, :], other=1) == 0
    return tl.where(negative, weight * focal_slope(x, gamma, POWER), 0)


@triton.jit
def _of_positive(
    logits_ptr,
    targets_ptr,
    slopes_c_ptr,
    k,
    position,
    mine,
    rows,
    upstream,
    weight,
    gamma,
    POWER: tl.constexpr,
    SOFTMAX: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """What harmonic detection gives to the logit of positive k; for softmax, the factor of its row."""
    slope = tl.load(slopes_c_ptr + k, mask=mine, other=0).to(COMPUTE) * upstream
    if SOFTMAX:
        labels = tl.load(targets_ptr + rows, mask=mine, other=0)
        return tl.where(labels < NUM_CHANNELS, slope, float("nan"))
    z = -clamp_infinities(tl.load(logits_ptr + position, mask=mine, other=0), COMPUTE)
    return -slope * weight * focal_slope(z, gamma, POWER)


@triton.jit
def _gradient_kernel(
    logits_ptr,
    targets_ptr,
    positions_ptr,
    iou_ptr,
    upstream_ptr,
    scale_ptr,
    slopes_c_ptr,
    grad_logits_ptr,
    grad_iou_ptr,
    upstream_stride,
    num_positives,
    margin: tl.float64,
    weight: tl.float64,
    negative_weight: tl.float64,
    positive_weight: tl.float64,
    gamma: tl.float64,
    JOINED: tl.constexpr,
    SOFTMAX: tl.constexpr,
    POWER: tl.constexpr,
    LABELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradients of the IoU of a tile of positives, and of the rows that they own."""
    i = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_range, margin, weight = i < num_positives, number(margin, COMPUTE), number(weight, COMPUTE)
    positive_weight, gamma = number(positive_weight, COMPUTE), number(gamma, COMPUTE)
    if JOINED:
        scale = tl.load(scale_ptr).to(COMPUTE)
        weight *= scale
        of_loss = tl.load(upstream_ptr).to(COMPUTE)
        negative_weight = number(negative_weight, COMPUTE) * (scale * of_loss)
    positions = tl.load(positions_ptr + i, mask=in_range, other=-1)
    rows = positions // NUM_CHANNELS
    before = tl.load(positions_ptr + i - 1, mask=in_range & (i > 0), other=-NUM_CHANNELS) // NUM_CHANNELS
    owner = in_range & (before != rows)
    entropy, m, log_t = entropy_of(logits_ptr, rows, in_range, SOFTMAX, COLS, NUM_CHANNELS, COMPUTE)
    w = 1 / (1 + exponential(entropy))

    _, sign, _ = load_positives(logits_ptr, iou_ptr, i, positions, in_range, m, log_t, margin, SOFTMAX, COMPUTE)
    upstream = weight * tl.load(upstream_ptr + i * upstream_stride, mask=in_range, other=0).to(COMPUTE)
    grad_iou = -upstream * w * sign
    tl.store(grad_iou_ptr + i, round_to(grad_iou, grad_iou_ptr), mask=in_range)

    for start in range(0, NUM_CHANNELS, COLS):
        c, x = load_channels(logits_ptr, rows, owner, start, COLS, NUM_CHANNELS, COMPUTE)
        sum_excess = tl.zeros([ROWS], COMPUTE)
        sum_bumps = tl.zeros([ROWS], COMPUTE)
        gradient = tl.zeros([ROWS, COLS], COMPUTE)
        if JOINED and not SOFTMAX:
            gradient += _of_negatives(
                targets_ptr, rows, owner, x, c, negative_weight, gamma, POWER, NUM_CHANNELS, LABELS
            )
        k, mine = i, owner
        while tl.max(mine.to(tl.int32)) > 0:
            position = tl.load(positions_ptr + k, mask=mine, other=0)
            r, sign, slope = load_positives(logits_ptr, iou_ptr, k, position, mine, m, log_t, margin, SOFTMAX, COMPUTE)
            upstream = weight * tl.load(upstream_ptr + k * upstream_stride, mask=mine, other=0).to(COMPUTE)
            bump = upstream * w * sign * slope
            sum_excess += tl.where(mine, upstream * r, 0)
            if JOINED:
                of_positive = _of_positive(
                    logits_ptr,
                    targets_ptr,
                    slopes_c_ptr,
                    k,
                    position,
                    mine,
                    rows,
                    of_loss,
                    positive_weight,
                    gamma,
                    POWER,
                    SOFTMAX,
                    NUM_CHANNELS,
                    COMPUTE,
                )
                # The gradient of cross-entropy, p - [c = own], is that of a bump of the opposite sign.
                bump += -of_positive if SOFTMAX else of_positive
            sum_bumps += tl.where(mine, bump, 0)
            own = mine[:, None] & (c[None, :] == (position - rows * NUM_CHANNELS)[:, None])
            gradient += tl.where(own, bump[:, None], 0)
            k += 1
            following = tl.load(positions_ptr + k, mask=mine & (k < num_positives), other=-1)
            mine = mine & (k < num_positives) & (following // NUM_CHANNELS == rows)
        spread = (sum_excess * w * (1 - w))[:, None]
        if SOFTMAX:
            log_p = (x - m[:, None]) - log_t[:, None]
            p = exponential(log_p)
            gradient += p * (spread * (log_p + entropy[:, None]) - sum_bumps[:, None])
        else:
            gradient += spread * x * sigmoid_parts(x)[2]
        at = grad_logits_ptr + rows[:, None] * NUM_CHANNELS + c[None, :]
        mask = owner[:, None] & (c < NUM_CHANNELS)[None, :]
        tl.store(at, round_to(gradient, grad_logits_ptr), mask=mask)


def backward(
    logits: Tensor, positions: Tensor, iou: Tensor, upstream: Tensor, margin: float, activation: str
) -> tuple[Tensor, Tensor]:
    """Gradients of `logits` and `iou`."""
    grad_logits = torch.zeros_like(logits, memory_format=torch.contiguous_format)
    arguments: dict[str, object] = dict.fromkeys(("targets_ptr", "scale_ptr", "slopes_c_ptr"))
    arguments |= dict.fromkeys(("negative_weight", "positive_weight", "gamma"), 0.0)
    arguments |= {"JOINED": False, "POWER": 0, "LABELS": False, "weight": 1.0}
    arguments |= {"upstream_ptr": upstream.contiguous(), "upstream_stride": 1}
    return grad_logits, _launch(logits, positions, iou, margin, activation, grad_logits, arguments)


def join(
    grad_logits: Tensor,
    logits: Tensor,
    targets: Tensor,
    positions: Tensor,
    iou: Tensor,
    scale: Tensor,
    slopes_c: Tensor,
    upstream: Tensor,
    activation: str,
    negative_weight: float,
    positive_weight: float,
    gamma: float,
    margin: float,
    weight: float,
) -> Tensor:
    """The gradient of `iou`; writes into `grad_logits` the rows with a positive, of both losses together."""
    scopes = scopes_of(logits, targets, per_image=False)
    arguments: dict[str, object] = {
        "targets_ptr": scopes.targets,
        "scale_ptr": scale,
        "slopes_c_ptr": slopes_c,
        "upstream_ptr": upstream,
        "upstream_stride": 0,
        "weight": weight,
        "negative_weight": negative_weight,
        "positive_weight": positive_weight,
        "gamma": gamma,
        "JOINED": True,
        "POWER": power_of(gamma),
        "LABELS": scopes.labels,
    }
    return _launch(logits, positions, iou, margin, activation, grad_logits, arguments)


def _launch(
    logits: Tensor,
    positions: Tensor,
    iou: Tensor,
    margin: float,
    activation: str,
    grad_logits: Tensor,
    arguments: dict[str, object],
) -> Tensor:
    grad_iou = torch.empty_like(iou, memory_format=torch.contiguous_format)
    if iou.numel() > 0:
        tile = tile_of(logits.shape[-1] if logits.dim() > 1 else 1)
        dtype = result_dtype(logits, iou)
        _gradient_kernel[cdiv(iou.numel(), tile["ROWS"]),](
            logits.contiguous(),
            positions_ptr=positions.contiguous(),
            iou_ptr=iou.contiguous(),
            grad_logits_ptr=grad_logits,
            grad_iou_ptr=grad_iou,
            num_positives=iou.numel(),
            margin=margin,
            SOFTMAX=activation == "softmax",
            COMPUTE=TRITON_DTYPE[dtype],
            **arguments,
            **tile | {"num_warps": tile["num_warps"] * num_warps_of(dtype)},
        )
    return grad_iou

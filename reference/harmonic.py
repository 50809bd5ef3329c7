"""Harmonic loss and task-contrastive loss (Wang and Zhang, ICCV 2021, arXiv 2108.10809).

Of a positive with classification loss c and localization loss l,
    h = (1 + exp(-l)) c + (1 + exp(-c)) l
    dh/dc = 1 + exp(-l) - l exp(-c),   dh/dl = 1 + exp(-c) - c exp(-l)     (factors constant: without the last terms)

Task-contrastive loss of a positive: with p the probability of its class, u its IoU, H the entropy of the prediction,
    t = r w,   r = max(0, |p - u| - margin),   w = 1 / (1 + exp(H))
    dt/dx_c = w [r > 0] sign(p - u) dp/dx_c - r w (1 - w) dH/dx_c,   dt/du = -w [r > 0] sign(p - u)
    sigmoid    H = sum_c -p_c log p_c - (1 - p_c) log(1 - p_c), the entropy of C independent yes-or-no answers;
               dH/dx_c = -x_c p_c (1 - p_c);   dp/dx_c = p (1 - p) for the positive's channel, 0 for the others
    softmax    H = -sum_c p_c log p_c;   dH/dx_c = -p_c (log p_c + H);   dp/dx_c = p ([c = label] - p_c)
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from .candidates import finite
from .targets import accumulation_dtype, positive_positions
from .terms import classes, widest_dtype


def harmonic_forward(classification: Tensor, localization: Tensor, detach_factors: bool) -> Tensor:
    """h, of the shape of both arguments."""
    dtype = accumulation_dtype(classification)
    c, loc = classification.to(dtype), localization.to(dtype)
    of_c, of_loc = 1 + (-loc).exp(), 1 + (-c).exp()
    if detach_factors:
        of_c, of_loc = of_c.detach(), of_loc.detach()
    return (of_c * c + of_loc * loc).to(widest_dtype(classification, localization))


def harmonic_slopes(classification: Tensor, localization: Tensor, detach_factors: bool) -> tuple[Tensor, Tensor]:
    """(dh/dc, dh/dl)."""
    dtype = accumulation_dtype(classification)
    c, loc = classification.to(dtype), localization.to(dtype)
    if detach_factors:
        return 1 + (-loc).exp(), 1 + (-c).exp()
    return 1 + (-loc).exp() - loc * (-c).exp(), 1 + (-c).exp() - c * (-loc).exp()


def harmonic_backward(
    classification: Tensor, localization: Tensor, upstream: Tensor, detach_factors: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of both, in their dtypes."""
    of_c, of_l = harmonic_slopes(classification, localization, detach_factors)
    return (upstream * of_c).to(classification.dtype).contiguous(), (upstream * of_l).to(
        localization.dtype
    ).contiguous()


def task_contrastive_forward(logits: Tensor, positions: Tensor, iou: Tensor, margin: float, activation: str) -> Tensor:
    """t [P] of the positives at flat `positions`, with their IoU [P]."""
    rows, channels = rows_of_positives(logits, positions)
    p, entropy = probabilities_and_entropy(rows, activation)
    excess = (p.gather(1, channels).squeeze(1) - iou.to(p.dtype)).abs() - margin
    return (excess.relu() * (-entropy).sigmoid()).to(widest_dtype(logits, iou))


def task_contrastive_backward(
    logits: Tensor, positions: Tensor, iou: Tensor, upstream: Tensor, margin: float, activation: str
) -> tuple[Tensor, Tensor]:
    """Gradients of `logits` and `iou`, in their dtypes."""
    rows, channels = rows_of_positives(logits, positions)
    p, entropy = probabilities_and_entropy(rows, activation)
    own = p.gather(1, channels)
    offset = own - iou.to(p.dtype).unsqueeze(1)
    excess, w = (offset.abs() - margin).relu(), (-entropy).sigmoid().unsqueeze(1)
    of_own = w * offset.sign() * (excess > 0)
    is_own = torch.zeros_like(p).scatter(1, channels, 1)
    if activation == "softmax":
        d_own = own * (is_own - p)
        d_entropy = -p * (rows.log_softmax(1) + entropy.unsqueeze(1))
    else:
        d_own = is_own * p * (-rows).sigmoid()
        d_entropy = -rows * p * (-rows).sigmoid()
    upstream = upstream.to(p.dtype).unsqueeze(1)
    of_rows = upstream * (of_own * d_own - excess * w * (1 - w) * d_entropy)
    gradient = torch.zeros_like(rows_of(logits), dtype=p.dtype, memory_format=torch.contiguous_format)
    gradient = gradient.index_put((positions // max(1, p.shape[1]),), of_rows, accumulate=True)
    of_iou = (-upstream * of_own).squeeze(1).to(iou.dtype)
    return gradient.view(logits.shape).to(logits.dtype), of_iou.contiguous()


def probabilities_and_entropy(rows: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """p_c [P, C] and H [P]."""
    if activation == "softmax":
        log_p = rows.log_softmax(1)
        return log_p.exp(), -(log_p.exp() * log_p).sum(1)
    p, q = rows.sigmoid(), (-rows).sigmoid()
    return p, -(p * logsigmoid(rows) + q * logsigmoid(-rows)).sum(1)


def positions_of(logits: Tensor, targets: Tensor, background: int | None) -> Tensor:
    """Flat, row-major positions of the positive logits, int64 [P]; with a `background`, targets are softmax labels."""
    if background is None:
        return positive_positions(logits, targets)
    samples = classes(logits, targets, background)[1].reshape(-1).nonzero().squeeze(1)
    num_channels = logits.shape[-1]
    return samples * num_channels + targets.reshape(-1)[samples].long().clamp(max=num_channels - 1)


def rows_of(logits: Tensor) -> Tensor:
    """[A, C]; logits [N] are anchors of one channel."""
    return logits.flatten(0, -2) if logits.dim() > 1 else logits.unsqueeze(1)


def rows_of_positives(logits: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [P, C] of the anchors of the positives, the positives' channels [P, 1])."""
    rows = rows_of(logits)
    num_channels = max(1, rows.shape[1])
    anchors = rows[positions // num_channels]
    return finite(anchors).to(accumulation_dtype(logits)), (positions % num_channels).unsqueeze(1)

"""Harmonic loss of single positives, forward and backward: one kernel each.

h = (1 + exp(-l)) c + (1 + exp(-c)) l
dh/dc = 1 + exp(-l) - l exp(-c),   dh/dl = 1 + exp(-c) - c exp(-l)     (factors constant: without the last terms)

symbol               meaning
c, l (loc)           classification loss and localization loss of a positive
upstream             of loss i at i * upstream_stride: stride 0 where all losses have the same, as in a sum

owner of outputs     program t: losses t * BLOCK and the following, and both gradients of these
accumulation         float32 (float64 where c or l is float64); nothing is summed
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...dtypes import result_dtype
from ..candidates import TRITON_DTYPE
from .rows import round_to, upstream_and_stride

BLOCK = 1024  # losses per program: 8 a thread, two 16-byte loads of each in float32. Not yet measured on a GPU.


@triton.jit
def harmonic(c, loc):
    """The loss h."""
    return (1 + tl.exp(-loc)) * c + (1 + tl.exp(-c)) * loc


@triton.jit
def harmonic_slopes(c, loc, DETACH: tl.constexpr):
    """(dh/dc, dh/dl)."""
    exp_loc, exp_c = tl.exp(-loc), tl.exp(-c)
    if DETACH:
        return 1 + exp_loc, 1 + exp_c
    return 1 + exp_loc - loc * exp_c, 1 + exp_c - c * exp_loc


@triton.jit
def add_positives(c, localization_ptr, slopes_ptr, i, num_positives, DETACH: tl.constexpr):
    """h of the positives i, 0 behind the last; stores dh/dc and dh/dl, for harmonic detection."""
    in_range = i < num_positives
    loc = tl.load(localization_ptr + i, mask=in_range, other=0).to(c.dtype)
    slope_c, slope_loc = harmonic_slopes(c, loc, DETACH)
    tl.store(slopes_ptr + i, slope_c, mask=in_range)
    tl.store(slopes_ptr + num_positives + i, slope_loc, mask=in_range)
    return tl.where(in_range, harmonic(c, loc), 0)


@triton.jit
def _harmonic_kernel(
    classification_ptr,
    localization_ptr,
    losses_ptr,
    num_losses,
    BLOCK: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Losses of a block."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.load(classification_ptr + i, mask=i < num_losses, other=0).to(COMPUTE)
    loc = tl.load(localization_ptr + i, mask=i < num_losses, other=0).to(COMPUTE)
    tl.store(losses_ptr + i, harmonic(c, loc), mask=i < num_losses)


@triton.jit
def _harmonic_backward_kernel(
    classification_ptr,
    localization_ptr,
    upstream_ptr,
    grad_c_ptr,
    grad_loc_ptr,
    upstream_stride,
    num_losses,
    BLOCK: tl.constexpr,
    DETACH: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Both gradients of a block."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    c = tl.load(classification_ptr + i, mask=i < num_losses, other=0).to(COMPUTE)
    loc = tl.load(localization_ptr + i, mask=i < num_losses, other=0).to(COMPUTE)
    upstream = tl.load(upstream_ptr + i * upstream_stride, mask=i < num_losses, other=0).to(COMPUTE)
    slope_c, slope_loc = harmonic_slopes(c, loc, DETACH)
    tl.store(grad_c_ptr + i, round_to(upstream * slope_c, grad_c_ptr), mask=i < num_losses)
    tl.store(grad_loc_ptr + i, round_to(upstream * slope_loc, grad_loc_ptr), mask=i < num_losses)


def harmonic_loss(classification: Tensor, localization: Tensor, detach_factors: bool) -> Tensor:
    """h, of the shape of both; `detach_factors` makes no difference to it."""
    dtype = result_dtype(classification, localization)
    losses = torch.empty(classification.shape, dtype=dtype, device=classification.device)
    if losses.numel() > 0:
        _harmonic_kernel[triton.cdiv(losses.numel(), BLOCK),](
            classification.contiguous(),
            localization.contiguous(),
            losses,
            num_losses=losses.numel(),
            BLOCK=BLOCK,
            COMPUTE=TRITON_DTYPE[dtype],
        )
    return losses


def harmonic_loss_backward(
    classification: Tensor, localization: Tensor, upstream: Tensor, detach_factors: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of both, in their dtypes."""
    grad_classification = torch.empty_like(classification, memory_format=torch.contiguous_format)
    grad_localization = torch.empty_like(localization, memory_format=torch.contiguous_format)
    num_losses = grad_classification.numel()
    if num_losses > 0:
        upstream, stride = upstream_and_stride(upstream)
        _harmonic_backward_kernel[triton.cdiv(num_losses, BLOCK),](
            classification.contiguous(),
            localization.contiguous(),
            upstream,
            grad_classification,
            grad_localization,
            upstream_stride=stride,
            num_losses=num_losses,
            BLOCK=BLOCK,
            DETACH=detach_factors,
            COMPUTE=TRITON_DTYPE[result_dtype(classification, localization)],
        )
    return grad_classification, grad_localization

"""What AP, aLRP and Rank & Sort Loss compute over pairs of positives, and the sums over positives.

a_i = sum_k H(p_k - p_i), k = i included
losses = scale sum_i terms_i

owner of outputs     positives_above: the caller;  _sum_kernel l: loss l
accumulation         a_i in float32 (float64 for float64 logits); losses in float64, in a fixed order
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .step import step

# Positives per program, and per step of its loop: 8 pairs a thread, so that four sums of them stay in registers, in
# float64 too. With 64, Rank & Sort spilled.
TILE = 32
SUM_BLOCK = 1024


@triton.jit
def positives_above(
    scores_ptr,
    p,
    first,
    last,
    half_inverse_delta,
    TILE: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """a_i of a tile of scores p, over the positives first:last of the scope."""
    sums = tl.zeros([TILE, TILE], COMPUTE)
    for start in range(first, last, TILE):
        k = start + tl.arange(0, TILE)
        p_k = tl.load(scores_ptr + k, mask=k < last, other=float("-inf"))
        sums += step(p_k[None, :] - p[:, None], half_inverse_delta, HARD)
    return tl.sum(sums, 1)


@triton.jit
def num_ranked_scopes(offsets_ptr, num_scopes, SCOPES: tl.constexpr):
    """Number of scopes that have a positive."""
    s = tl.arange(0, SCOPES)
    ends = tl.load(offsets_ptr + 1 + s, mask=s < num_scopes, other=0)
    starts = tl.load(offsets_ptr + s, mask=s < num_scopes, other=0)
    return tl.sum((ends > starts).to(tl.int32))


@triton.jit
def _sum_kernel(terms_ptr, num_positives_ptr, first_ptr, second_ptr, capacity, scale, BLOCK: tl.constexpr):
    """Write one loss."""
    loss = tl.program_id(0)
    num_positives = tl.load(num_positives_ptr)
    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, num_positives, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(terms_ptr + loss * capacity + i, mask=i < num_positives, other=0).to(tl.float64)
    total = (tl.sum(sums) * scale).to(terms_ptr.dtype.element_ty)
    if loss == 0:
        tl.store(first_ptr, total)
    else:
        tl.store(second_ptr, total)


def empty_state(above: Tensor, num_updates: int, max_positives: int | None) -> tuple[Tensor, Tensor]:
    """(weights [P], updates [K, P]) for kernels to write; behind the last positive of a bound they are 0."""
    allocate = torch.empty if max_positives is None else torch.zeros
    weights = allocate(above.shape, dtype=above.dtype, device=above.device)
    return weights, allocate((num_updates, above.numel()), dtype=above.dtype, device=above.device)


def sum_terms(terms: Tensor, offsets: Tensor, scale: float = 1.0) -> list[Tensor]:
    """The losses, one or two: `scale` times the sums of the terms [K, P] over all positives."""
    num_losses, capacity = terms.shape
    losses = [torch.empty((), dtype=terms.dtype, device=terms.device) for _ in range(num_losses)]
    num_positives = offsets[-1:]
    _sum_kernel[num_losses,](terms, num_positives, losses[0], losses[-1], capacity, scale, BLOCK=SUM_BLOCK)
    return losses

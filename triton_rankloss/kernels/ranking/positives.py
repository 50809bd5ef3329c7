"""Pairs of positives: their order, and how many of them rank above each.

    rank_i = number of k in the scope with p_k < p_i, or p_k = p_i and k < i
    a_i    = 1 + sum over k != i of H(p_k - p_i)

Every positive is compared with all of its scope, in tiles: for some thousands of positives that takes less time than a
sorting network, no data is exchanged, and no order of programs matters. A NaN comes last.

    symbol               meaning
    i, k                 positives as they are listed: row-major
    p                    their scores
    order [P]            which i is at each place in ascending order, scope s at offsets[s]:offsets[s + 1]
    among [P]            a_i, in ascending order

    owner of outputs     program t: the places of positives t * SORT_TILE and the following, of whichever scopes
    accumulation         ranks int32; a_i float32 (float64 for float64 logits)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arithmetic import number
from ..candidates import TRITON_DTYPE
from ..grid import cdiv
from ..listing import Positives
from .step import half_inverse, step

# Positives per program, and per step of its loop: 8 pairs a thread, so that four sums of them stay in registers, in
# float64 too. With 64, Rank & Sort spilled.
TILE = 32
SORT_TILE, SORT_OTHERS = 8, 128  # so many at once, since the kernel waits for memory rather than for arithmetic


@triton.jit
def find_scopes(offsets_ptr, i, num_scopes, num_scope_steps):
    """(first, last) of the scope of each positive i: the last scope that begins at or before it."""
    scope = i * 0
    for search_step in range(num_scope_steps):
        trial = scope + (1 << (num_scope_steps - 1 - search_step))
        reachable = trial < num_scopes
        begin = tl.load(offsets_ptr + trial, mask=reachable, other=0)
        scope = tl.where(reachable & (begin <= i), trial, scope)
    return tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)


@triton.jit
def load_tile(offsets_ptr, num_scopes, num_scope_steps, TILE: tl.constexpr):
    """The program's tile of positives: (i, whether there are so many, first and last of their scopes)."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = i < tl.load(offsets_ptr + num_scopes).to(tl.int32)
    first, last = find_scopes(offsets_ptr, tl.where(there, i, 0), num_scopes, num_scope_steps)
    first = first.to(tl.int32)
    return i, there, first, tl.where(there, last.to(tl.int32), first)


@triton.jit(do_not_specialize=["capacity", "num_scopes", "num_scope_steps"])
def _sort_kernel(
    scores_ptr,
    positions_ptr,
    offsets_ptr,
    sorted_ptr,
    sorted_positions_ptr,
    order_ptr,
    among_ptr,
    capacity,
    num_scopes,
    num_scope_steps,
    half_inverse_delta: tl.float64,
    TILE: tl.constexpr,
    OTHERS: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Put a tile of positives in their places."""
    half_inverse_delta = number(half_inverse_delta, COMPUTE)
    i, there, first, last = load_tile(offsets_ptr, num_scopes, num_scope_steps, TILE)
    p = tl.load(scores_ptr + i, mask=there, other=0)
    key = tl.where(p != p, float("inf"), p)
    rank = tl.zeros([TILE, OTHERS], tl.int32)
    above = tl.zeros([TILE, OTHERS], COMPUTE)
    for start in range(tl.min(first), tl.max(last), OTHERS):
        k = start + tl.arange(0, OTHERS)
        in_scope = (k[None, :] >= first[:, None]) & (k[None, :] < last[:, None])
        p_k = tl.load(scores_ptr + k, mask=k < capacity, other=0)
        key_k = tl.where(p_k != p_k, float("inf"), p_k)
        before = (key_k[None, :] < key[:, None]) | ((key_k[None, :] == key[:, None]) & (k[None, :] < i[:, None]))
        rank += (before & in_scope).to(tl.int32)
        above += tl.where(in_scope, step(p_k[None, :] - p[:, None], half_inverse_delta, HARD), 0)
    among = tl.sum(above, 1)
    if not HARD:
        among += 0.5  # the positive itself counts as 1, and has been counted as H(0)
    place = tl.where(there, first + tl.sum(rank, 1), i)
    # Behind the last positive of a bound: valid to read through.
    tl.store(sorted_ptr + place, tl.where(there, p, 0), mask=i < capacity)
    tl.store(sorted_positions_ptr + place, tl.load(positions_ptr + i, mask=there, other=0), mask=i < capacity)
    tl.store(order_ptr + place, tl.where(there, i, 0), mask=i < capacity)
    tl.store(among_ptr + place, tl.where(there, among, 1), mask=i < capacity)


def sort(positives: Positives, delta: float) -> tuple[Positives, Tensor, Tensor]:
    """(The positives of each scope in ascending order of their scores, order, among)."""
    positions, scores, offsets, num_ranked = positives
    in_order = Positives(torch.empty_like(positions), torch.empty_like(scores), offsets, num_ranked)
    order, among = torch.empty_like(positions), torch.empty_like(scores)
    if scores.numel() > 0:
        _sort_kernel[cdiv(scores.numel(), SORT_TILE),](
            scores,
            positions,
            offsets,
            in_order.scores,
            in_order.positions,
            order,
            among,
            capacity=scores.numel(),
            num_scopes=offsets.numel() - 1,
            num_scope_steps=scope_steps(offsets),
            half_inverse_delta=half_inverse(delta),
            TILE=SORT_TILE,
            OTHERS=SORT_OTHERS,
            HARD=delta == 0,
            COMPUTE=TRITON_DTYPE[scores.dtype],
        )
    return in_order, order, among


def empty_state(above: Tensor, num_updates: int, max_positives: int | None) -> tuple[Tensor, Tensor]:
    """(weights [P], updates [K, P]) for kernels to write; behind the last positive of a bound they are 0."""
    allocate = torch.empty if max_positives is None else torch.zeros
    weights = allocate(above.shape, dtype=above.dtype, device=above.device)
    return weights, allocate((num_updates, above.numel()), dtype=above.dtype, device=above.device)


def scope_steps(offsets: Tensor) -> int:
    """How many steps `find_scopes` takes."""
    return (offsets.numel() - 2).bit_length()

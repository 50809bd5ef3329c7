"""Rank & Sort Loss on the GPU: what lies between count and transport, over tiles of pairs of positives.

H_ik = H(p_k - p_i),   r_i = sum_k H_ik,   m_i = sum_k [t_k < t_i] H_ik
ranking_i = b_i / (r_i + b_i)
sorting_i = (sum_k H_ik (1 - t_k)) / r_i - (sum over t_k >= t_i of H_ik (1 - t_k)) / (r_i - m_i)
ranking = mean ranking_i,   sorting = mean sorting_i
w_i = ranking_i / (b_i |P|) where b_i > eps, else 0
updates of positive i:  -w_i b_i  (ranking)
                        -sorting_i / |P| where m_i > 0, and
                        (1 / |P|) sum_k sorting_k [t_i < t_k] H_ki / m_k  (sorting)

symbol               meaning
t_i, above [P]       IoU targets; b_i, from count.py
|P|                  positives of the scope, times the scopes that have a positive: losses are means over these
terms [2, P]         shares of positive i in the means, ranking and sorting
carried [P]          the share of sorting over m_i, which positive i carries to those that cause it; 0 for m_i = 0

owner of outputs     program t: positives t * TILE and the following in ascending order, whichever scopes they are of
accumulation         float32 (float64 for float64 logits)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...distributed import join_ranks
from ...targets import is_per_anchor, values_at_positives
from ..arithmetic import number
from ..candidates import TRITON_DTYPE, scopes_of
from ..grid import cdiv
from ..listing import find_positives, gather_positives, pad_to_bound
from .count import count
from .finish import finish
from .kinks import make_kinks
from .positives import TILE, empty_state, load_tile, scope_steps, sort
from .step import half_inverse, representable, step


@triton.jit(do_not_specialize=["capacity", "num_scopes", "num_scope_steps"])
def _error_kernel(
    sorted_ptr,
    iou_ptr,
    offsets_ptr,
    num_ranked_ptr,
    above_ptr,
    weights_ptr,
    updates_ptr,
    terms_ptr,
    carried_ptr,
    capacity,
    num_scopes,
    num_scope_steps,
    eps: tl.float64,
    half_inverse_delta: tl.float64,
    TILE: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The terms of positive i, w_i, its ranking update, and what it carries."""
    eps, half_inverse_delta = number(eps, COMPUTE), number(half_inverse_delta, COMPUTE)
    i, there, first, last = load_tile(offsets_ptr, num_scopes, num_scope_steps, TILE)
    p = tl.load(sorted_ptr + i, mask=there, other=0)
    t = tl.load(iou_ptr + i, mask=there, other=0).to(COMPUTE)
    in_order = tl.zeros([TILE, TILE], COMPUTE)
    in_order_error = tl.zeros([TILE, TILE], COMPUTE)
    missorted = tl.zeros([TILE, TILE], COMPUTE)
    missorted_error = tl.zeros([TILE, TILE], COMPUTE)
    for start in range(tl.min(first), tl.max(last), TILE):
        k = start + tl.arange(0, TILE)
        in_scope = (k[None, :] >= first[:, None]) & (k[None, :] < last[:, None])
        p_k = tl.load(sorted_ptr + k, mask=k < capacity, other=0)
        t_k = tl.load(iou_ptr + k, mask=k < capacity, other=0).to(COMPUTE)
        h = tl.where(in_scope, step(p_k[None, :] - p[:, None], half_inverse_delta, HARD), 0)
        lower_target = t_k[None, :] < t[:, None]
        h_missorted = tl.where(lower_target, h, 0)
        h_in_order = tl.where(lower_target, 0, h)
        in_order += h_in_order
        in_order_error += h_in_order * (1 - t_k)[None, :]
        missorted += h_missorted
        missorted_error += h_missorted * (1 - t_k)[None, :]
    above = tl.load(above_ptr + i, mask=there, other=0)
    r, m = tl.sum(in_order, 1), tl.sum(missorted, 1)
    target = tl.sum(in_order_error, 1) / r
    # With m_i factored out of the difference of both means, it is 0, not a rounding error, for m_i = 0.
    sorting = (tl.sum(missorted_error, 1) - m * target) / (r + m)
    scale = 1 / ((last - first).to(COMPUTE) * tl.load(num_ranked_ptr).to(COMPUTE))
    ranking = above / (r + m + above) * scale
    sorting = sorting * scale
    share = tl.where(above <= eps, 0, ranking)
    tl.store(weights_ptr + i, tl.where(above <= eps, 0, share / above), mask=there)
    tl.store(updates_ptr + i, -share, mask=there)
    tl.store(terms_ptr + i, ranking, mask=there)
    tl.store(terms_ptr + capacity + i, sorting, mask=there)
    tl.store(carried_ptr + i, tl.where(m > 0, sorting / m, 0), mask=there)


@triton.jit(do_not_specialize=["capacity", "num_scopes", "num_scope_steps"])
def _sorting_update_kernel(
    sorted_ptr,
    iou_ptr,
    offsets_ptr,
    terms_ptr,
    carried_ptr,
    updates_ptr,
    capacity,
    num_scopes,
    num_scope_steps,
    half_inverse_delta: tl.float64,
    TILE: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The sorting update: errors move from the positives that have them to the positives that cause them."""
    half_inverse_delta = number(half_inverse_delta, COMPUTE)
    i, there, first, last = load_tile(offsets_ptr, num_scopes, num_scope_steps, TILE)
    p = tl.load(sorted_ptr + i, mask=there, other=0)
    t = tl.load(iou_ptr + i, mask=there, other=0).to(COMPUTE)
    received = tl.zeros([TILE, TILE], COMPUTE)
    for start in range(tl.min(first), tl.max(last), TILE):
        k = start + tl.arange(0, TILE)
        in_scope = (k[None, :] >= first[:, None]) & (k[None, :] < last[:, None])
        p_k = tl.load(sorted_ptr + k, mask=k < capacity, other=0)
        t_k = tl.load(iou_ptr + k, mask=k < capacity, other=0).to(COMPUTE)
        carried = tl.load(carried_ptr + k, mask=k < capacity, other=0)
        h = step(p[:, None] - p_k[None, :], half_inverse_delta, HARD)
        received += tl.where(in_scope & (t[:, None] < t_k[None, :]), h * carried[None, :], 0)
    carried = tl.load(carried_ptr + i, mask=there, other=0)
    sorting = tl.load(terms_ptr + capacity + i, mask=there, other=0)
    update = tl.sum(received, 1) - tl.where(carried == 0, 0, sorting)
    tl.store(updates_ptr + capacity + i, update, mask=there)


def forward(
    logits: Tensor,
    targets: Tensor,
    iou: Tensor | None,
    delta: float,
    eps: float,
    per_image: bool,
    max_positives: int | None,
    group: str | None = None,
) -> tuple[Tensor, ...]:
    """(ranking, sorting, fields of ranking.State)."""
    scopes = scopes_of(logits, targets, per_image)
    positives = find_positives(scopes, max_positives)
    if logits.numel() == 0:
        iou = positives.scores  # of none; a bound on their number leaves room
    elif iou is None:
        iou = targets.reshape(-1)[positives.positions]
    elif max_positives is None or is_per_anchor(iou, logits):
        iou = values_at_positives(iou, logits, positives.positions, "iou")
    else:
        iou = pad_to_bound(iou, max_positives)
    ranks = join_ranks(group, "rank_sort_loss", {"delta": delta, "eps": eps}, logits, iou.numel(), per_image)
    delta = representable(delta)
    positives, order, _ = sort(gather_positives(positives, ranks), delta)
    kinks = make_kinks(positives, delta, max_positives)
    iou = ranks.gather_values(iou)[order]
    above = ranks.total_count(count(scopes, positives, kinks, delta))
    weights, updates = empty_state(above, 2, max_positives)
    carried, terms = torch.empty_like(above), above.new_empty(2, above.numel())
    if above.numel() > 0:
        grid = (cdiv(above.numel(), TILE),)
        sizes = {
            "capacity": above.numel(),
            "num_scopes": scopes.num_scopes,
            "num_scope_steps": scope_steps(positives.offsets),
            "half_inverse_delta": half_inverse(delta),
            "TILE": TILE,
            "HARD": delta == 0,
            "COMPUTE": TRITON_DTYPE[above.dtype],
        }
        _error_kernel[grid](
            positives.scores,
            iou,
            positives.offsets,
            positives.num_ranked,
            above,
            weights,
            updates,
            terms,
            carried,
            eps=eps,
            **sizes,
        )
        _sorting_update_kernel[grid](positives.scores, iou, positives.offsets, terms, carried, updates, **sizes)
    losses = finish(positives, kinks, weights, terms, delta)
    losses = ranks.mean_over_scopes(losses, [weights, updates, kinks.lines[1:]], positives.offsets)
    positions, scores, offsets, _ = positives
    return *losses, positions, scores, weights, updates, offsets, kinks.lines, kinks.cells

"""aLRP Loss on the GPU: what lies between count and transport, over tiles of pairs of positives.

a_i = 1 + sum_{k != i} H(p_k - p_i)        rank_i = a_i + b_i
f_i = (b_i + sum_{k != i} H(p_k - p_i) e_k) / rank_i    where b_i > eps, else 0
l_i = (sum of e_k over p_k >= p_i) / rank_i
classification = mean b_i / rank_i,   localization = mean l_i
w_i = f_i / (b_i |P|),   update of positive i = -f_i / |P|
gradient of the localization part in e_k = (1 / |P|) sum over p_i <= p_k of 1 / rank_i

symbol               meaning
e_i, above [P]       localization errors; b_i, from count.py
|P|                  positives of the scope, times the scopes that have a positive: losses are means over these
terms [2, P]         shares of positive i in the means, classification and localization

owner of outputs     program t: positives t * TILE and the following in ascending order, whichever scopes they are of
accumulation         float32 (float64 for float64 logits)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...distributed import join_ranks
from ...targets import check_count
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
def _rank_kernel(
    sorted_ptr,
    errors_ptr,
    offsets_ptr,
    num_ranked_ptr,
    among_ptr,
    above_ptr,
    inverse_rank_ptr,
    weights_ptr,
    updates_ptr,
    terms_ptr,
    capacity,
    num_scopes,
    num_scope_steps,
    eps: tl.float64,
    half_inverse_delta: tl.float64,
    TILE: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """1 / (rank_i |P|), w_i, the update of positive i, and its terms."""
    eps, half_inverse_delta = number(eps, COMPUTE), number(half_inverse_delta, COMPUTE)
    i, there, first, last = load_tile(offsets_ptr, num_scopes, num_scope_steps, TILE)
    p = tl.load(sorted_ptr + i, mask=there, other=0)
    among_error = tl.zeros([TILE, TILE], COMPUTE)
    higher_error = tl.zeros([TILE, TILE], COMPUTE)
    for start in range(tl.min(first), tl.max(last), TILE):
        k = start + tl.arange(0, TILE)
        in_scope = (k[None, :] >= first[:, None]) & (k[None, :] < last[:, None])
        p_k = tl.load(sorted_ptr + k, mask=k < capacity, other=0)
        e_k = tl.load(errors_ptr + k, mask=k < capacity, other=0).to(COMPUTE)
        h = step(p_k[None, :] - p[:, None], half_inverse_delta, HARD)
        among_error += tl.where(in_scope & (k[None, :] != i[:, None]), h * e_k[None, :], 0)
        higher_error += tl.where(in_scope & (p_k[None, :] >= p[:, None]), e_k[None, :], 0)
    above = tl.load(above_ptr + i, mask=there, other=0)
    rank = tl.load(among_ptr + i, mask=there, other=1) + above
    scale = 1 / ((last - first).to(COMPUTE) * tl.load(num_ranked_ptr).to(COMPUTE))
    share = tl.where(above <= eps, 0, (above + tl.sum(among_error, 1)) / rank * scale)
    tl.store(inverse_rank_ptr + i, scale / rank, mask=there)
    tl.store(weights_ptr + i, tl.where(above <= eps, 0, share / above), mask=there)
    tl.store(updates_ptr + i, -share, mask=there)
    tl.store(terms_ptr + i, above / rank * scale, mask=there)
    tl.store(terms_ptr + capacity + i, tl.sum(higher_error, 1) / rank * scale, mask=there)


@triton.jit(do_not_specialize=["capacity", "num_scopes", "num_scope_steps"])
def _error_gradient_kernel(
    sorted_ptr,
    offsets_ptr,
    order_ptr,
    inverse_rank_ptr,
    grad_errors_ptr,
    capacity,
    num_scopes,
    num_scope_steps,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of the localization part in e_k, in the order in which the errors were given."""
    k, there, first, last = load_tile(offsets_ptr, num_scopes, num_scope_steps, TILE)
    p_k = tl.load(sorted_ptr + k, mask=there, other=0)
    sums = tl.zeros([TILE, TILE], COMPUTE)
    for start in range(tl.min(first), tl.max(last), TILE):
        i = start + tl.arange(0, TILE)
        in_scope = (i[None, :] >= first[:, None]) & (i[None, :] < last[:, None])
        p = tl.load(sorted_ptr + i, mask=i < capacity, other=0)
        inverse_rank = tl.load(inverse_rank_ptr + i, mask=i < capacity, other=0)
        lower = (p[None, :] > p_k[:, None]) == 0  # NaN among them
        sums += tl.where(in_scope & lower, inverse_rank[None, :], 0)
    tl.store(grad_errors_ptr + tl.load(order_ptr + k, mask=there, other=0), tl.sum(sums, 1), mask=there)


def forward(
    logits: Tensor,
    targets: Tensor,
    localization_errors: Tensor,
    delta: float,
    eps: float,
    per_image: bool,
    max_positives: int | None,
    group: str | None = None,
) -> tuple[Tensor, ...]:
    """(classification, localization, fields of ranking.State, gradient of the errors)."""
    scopes = scopes_of(logits, targets, per_image)
    positives = find_positives(scopes, max_positives)
    num_errors = localization_errors.numel()
    if max_positives is None:
        errors = check_count(localization_errors, positives.positions, "localization_errors")
    else:
        errors = pad_to_bound(localization_errors, max_positives)
    ranks = join_ranks(group, "alrp_loss", {"delta": delta, "eps": eps}, logits, errors.numel(), per_image)
    delta = representable(delta)
    positives, order, among = sort(gather_positives(positives, ranks), delta)
    kinks = make_kinks(positives, delta, max_positives)
    errors = ranks.gather_values(errors)[order]
    above = ranks.total_count(count(scopes, positives, kinks, delta))
    weights, updates = empty_state(above, 1, max_positives)
    inverse_rank, terms = torch.empty_like(above), above.new_empty(2, above.numel())
    # Errors that no positive is there for get 0.
    allocate = above.new_empty if max_positives is None else above.new_zeros
    grad_errors = allocate(max(num_errors, above.numel()))
    if above.numel() > 0:
        grid = (cdiv(above.numel(), TILE),)
        sizes = {
            "capacity": above.numel(),
            "num_scopes": scopes.num_scopes,
            "num_scope_steps": scope_steps(positives.offsets),
            "TILE": TILE,
            "COMPUTE": TRITON_DTYPE[above.dtype],
        }
        _rank_kernel[grid](
            positives.scores,
            errors,
            positives.offsets,
            positives.num_ranked,
            among,
            above,
            inverse_rank,
            weights,
            updates,
            terms,
            eps=eps,
            half_inverse_delta=half_inverse(delta),
            HARD=delta == 0,
            **sizes,
        )
        _error_gradient_kernel[grid](positives.scores, positives.offsets, order, inverse_rank, grad_errors, **sizes)
    losses = finish(positives, kinks, weights, terms, delta)
    losses = ranks.mean_over_scopes(losses, [weights, updates, kinks.lines[1:], grad_errors], positives.offsets)
    grad_errors = ranks.own_values(grad_errors)[:num_errors]
    positions, scores, offsets, _ = positives
    return *losses, positions, scores, weights, updates, offsets, kinks.lines, kinks.cells, grad_errors

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

owner of outputs     program (t, s): the positives in tile t of scope s
accumulation         float32 (float64 for float64 logits); the final sums over positives float64
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...distributed import join_ranks
from ...targets import check_count
from ..candidates import TRITON_DTYPE, find_positives, gather_positives, pad_to_bound, scopes_of
from .count import count
from .positives import TILE, empty_state, num_ranked_scopes, sum_terms
from .step import half_inverse, step


@triton.jit
def _rank_kernel(
    scores_ptr,
    errors_ptr,
    offsets_ptr,
    above_ptr,
    inverse_rank_ptr,
    weights_ptr,
    updates_ptr,
    terms_ptr,
    num_positives,
    num_scopes,
    eps,
    half_inverse_delta,
    TILE: tl.constexpr,
    SCOPES: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """1 / (rank_i |P|), w_i, the update of positive i, and its terms."""
    tile, scope = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    i = first + tile * TILE + tl.arange(0, TILE)
    if first + tile * TILE < last:
        p = tl.load(scores_ptr + i, mask=i < last, other=0)
        among = tl.zeros([TILE, TILE], COMPUTE)
        among_error = tl.zeros([TILE, TILE], COMPUTE)
        higher_error = tl.zeros([TILE, TILE], COMPUTE)
        for start in range(first, last, TILE):
            k = start + tl.arange(0, TILE)
            p_k = tl.load(scores_ptr + k, mask=k < last, other=float("-inf"))
            e_k = tl.load(errors_ptr + k, mask=k < last, other=0).to(COMPUTE)
            h = step(p_k[None, :] - p[:, None], half_inverse_delta, HARD)
            h = tl.where(k[None, :] == i[:, None], 0, h)
            among += h
            among_error += h * e_k[None, :]
            higher_error += tl.where(p_k[None, :] >= p[:, None], e_k[None, :], 0)
        above = tl.load(above_ptr + i, mask=i < last, other=0)
        rank = 1 + tl.sum(among, 1) + above
        scale = 1 / ((last - first).to(COMPUTE) * num_ranked_scopes(offsets_ptr, num_scopes, SCOPES).to(COMPUTE))
        share = tl.where(above <= eps, 0, (above + tl.sum(among_error, 1)) / rank * scale)
        tl.store(inverse_rank_ptr + i, scale / rank, mask=i < last)
        tl.store(weights_ptr + i, tl.where(above <= eps, 0, share / above), mask=i < last)
        tl.store(updates_ptr + i, -share, mask=i < last)
        tl.store(terms_ptr + i, above / rank * scale, mask=i < last)
        tl.store(terms_ptr + num_positives + i, tl.sum(higher_error, 1) / rank * scale, mask=i < last)


@triton.jit
def _error_gradient_kernel(
    scores_ptr,
    offsets_ptr,
    inverse_rank_ptr,
    grad_errors_ptr,
    TILE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Gradient of the localization part in e_k."""
    tile, scope = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    k = first + tile * TILE + tl.arange(0, TILE)
    if first + tile * TILE < last:
        p_k = tl.load(scores_ptr + k, mask=k < last, other=0)
        sums = tl.zeros([TILE, TILE], COMPUTE)
        for start in range(first, last, TILE):
            i = start + tl.arange(0, TILE)
            p = tl.load(scores_ptr + i, mask=i < last, other=float("inf"))
            inverse_rank = tl.load(inverse_rank_ptr + i, mask=i < last, other=0)
            sums += tl.where(p[None, :] <= p_k[:, None], inverse_rank[None, :], 0)
        tl.store(grad_errors_ptr + k, tl.sum(sums, 1), mask=k < last)


def forward(
    logits: Tensor,
    targets: Tensor,
    localization_errors: Tensor,
    delta: float,
    eps: float,
    per_image: bool,
    max_positives: int | None,
    group: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(classification, localization, positions, scores, weights, updates [1, P], offsets, gradient of the errors)."""
    scopes = scopes_of(logits, targets, per_image)
    positives = find_positives(scopes, max_positives)
    num_errors = localization_errors.numel()
    if max_positives is None:
        errors = check_count(localization_errors, positives.positions, "localization_errors")
    else:
        errors = pad_to_bound(localization_errors, max_positives)
    ranks = join_ranks(group, "alrp_loss", {"delta": delta, "eps": eps}, logits, errors.numel(), per_image)
    positives = gather_positives(positives, ranks)
    positions, scores, offsets = positives
    errors = ranks.gather_values(errors)
    above = ranks.total_count(count(scopes, positives, delta))
    inverse_rank = torch.empty_like(above)
    weights, updates = empty_state(above, 1, max_positives)
    terms = above.new_empty(2, scores.numel())
    grad_errors = above.new_zeros(max(num_errors, scores.numel()))
    grid = (triton.cdiv(scores.numel(), TILE), scopes.num_scopes)
    constants = {"TILE": TILE, "COMPUTE": TRITON_DTYPE[scores.dtype]}
    if scores.numel() > 0:
        _rank_kernel[grid](
            scores,
            errors,
            offsets,
            above,
            inverse_rank,
            weights,
            updates,
            terms,
            num_positives=scores.numel(),
            num_scopes=scopes.num_scopes,
            eps=eps,
            half_inverse_delta=half_inverse(delta),
            SCOPES=triton.next_power_of_2(scopes.num_scopes),
            HARD=delta == 0,
            **constants,
        )
        _error_gradient_kernel[grid](scores, offsets, inverse_rank, grad_errors, **constants)
    losses = ranks.mean_over_scopes(sum_terms(terms, offsets), [weights, updates, grad_errors], offsets)
    grad_errors = ranks.own_values(grad_errors)[:num_errors]
    return losses[0], losses[1], positions, scores, weights, updates, offsets, grad_errors

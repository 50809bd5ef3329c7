"""AP Loss on the GPU: what lies between count and transport, over tiles of pairs of positives.

    err_i = b_i / (a_i + b_i) = 1 - prec_i     a_i = 1 + sum_{k != i} H(p_k - p_i)
    best_i = min of err_k over p_k <= p_i      interpolation raises the precision: the minimum of the errors, 1 - q_i
    loss = mean best_i,   w_i = best_i / (b_i |P|),   update of positive i = -best_i / |P|

The error b_i / (a_i + b_i) keeps its digits where it is small; 1 - prec_i would lose them.

    symbol               meaning
    above [P]            b_i, from count.py
    |P|                  positives of the scope, times the scopes that have a positive: the loss is the mean over these

    owner of outputs     program (t, s): the positives in tile t of scope s
    accumulation         float32 (float64 for float64 logits); the final sum over positives float64
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...distributed import join_ranks
from ..candidates import TRITON_DTYPE, find_positives, gather_positives, scopes_of
from .count import count
from .positives import TILE, empty_state, num_ranked_scopes, positives_above, sum_terms
from .step import half_inverse


@triton.jit
def _error_kernel(
    scores_ptr,
    offsets_ptr,
    above_ptr,
    error_ptr,
    half_inverse_delta,
    TILE: tl.constexpr,
    HARD: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """err_i."""
    tile, scope = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    i = first + tile * TILE + tl.arange(0, TILE)
    if first + tile * TILE < last:
        p = tl.load(scores_ptr + i, mask=i < last, other=0)
        above = tl.load(above_ptr + i, mask=i < last, other=0)
        among = positives_above(scores_ptr, p, first, last, half_inverse_delta, TILE, HARD, COMPUTE)
        among += 0.0 if HARD else 0.5  # the positive itself counts as 1, and has been counted as H(0)
        tl.store(error_ptr + i, above / (among + above), mask=i < last)


@triton.jit
def _update_kernel(
    scores_ptr,
    offsets_ptr,
    above_ptr,
    error_ptr,
    weights_ptr,
    updates_ptr,
    num_scopes,
    TILE: tl.constexpr,
    SCOPES: tl.constexpr,
    INTERPOLATE: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """w_i and the update of positive i."""
    tile, scope = tl.program_id(0), tl.program_id(1)
    first, last = tl.load(offsets_ptr + scope), tl.load(offsets_ptr + scope + 1)
    i = first + tile * TILE + tl.arange(0, TILE)
    if first + tile * TILE < last:
        error = tl.load(error_ptr + i, mask=i < last, other=0)
        best = error
        if INTERPOLATE:
            p = tl.load(scores_ptr + i, mask=i < last, other=0)
            for start in range(first, last, TILE):
                k = start + tl.arange(0, TILE)
                p_k = tl.load(scores_ptr + k, mask=k < last, other=float("inf"))
                error_k = tl.load(error_ptr + k, mask=k < last, other=float("inf"))
                candidates = tl.where(p_k[None, :] <= p[:, None], error_k[None, :], float("inf"))
                best = tl.minimum(best, tl.min(candidates, 1))
            best += 0 * error  # a minimum hides NaN
        above = tl.load(above_ptr + i, mask=i < last, other=1)
        share = best / ((last - first).to(COMPUTE) * num_ranked_scopes(offsets_ptr, num_scopes, SCOPES).to(COMPUTE))
        tl.store(weights_ptr + i, tl.where(above == 0, 0, share / above), mask=i < last)
        tl.store(updates_ptr + i, -share, mask=i < last)


def forward(
    logits: Tensor,
    targets: Tensor,
    delta: float,
    interpolate: bool,
    per_image: bool,
    max_positives: int | None,
    group: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, positions, scores, weights, updates [1, P], offsets)."""
    scopes = scopes_of(logits, targets, per_image)
    positives = find_positives(scopes, max_positives)
    arguments = {"delta": delta, "interpolate": interpolate}
    ranks = join_ranks(group, "ap_loss", arguments, logits, positives.scores.numel(), per_image)
    positives = gather_positives(positives, ranks)
    positions, scores, offsets = positives
    above = ranks.total_count(count(scopes, positives, delta))
    error = torch.empty_like(above)
    weights, updates = empty_state(above, 1, max_positives)
    grid = (triton.cdiv(scores.numel(), TILE), scopes.num_scopes)
    constants = {"TILE": TILE, "COMPUTE": TRITON_DTYPE[scores.dtype]}
    if scores.numel() > 0:
        _error_kernel[grid](scores, offsets, above, error, half_inverse(delta), HARD=delta == 0, **constants)
        _update_kernel[grid](
            scores,
            offsets,
            above,
            error,
            weights,
            updates,
            num_scopes=scopes.num_scopes,
            SCOPES=triton.next_power_of_2(scopes.num_scopes),
            INTERPOLATE=interpolate,
            **constants,
        )
    losses = sum_terms(updates, offsets, scale=-1)
    (loss,) = ranks.mean_over_scopes(losses, [weights, updates], offsets)
    return loss, positions, scores, weights, updates, offsets

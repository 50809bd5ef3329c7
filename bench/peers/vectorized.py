"""The reference's formulas over the |P| x |N| matrix of H(n_j - p_i), which is made twice and never kept.

`reference.dense` makes the whole matrix at once: 4 GB in float32 for 1 M negatives and 1000 positives. Here it gets the
products that its user would write then: eager ones, in blocks of negatives and in two passes, as x / (2 delta) + 1/2 is
made of shifted and scaled scores; or compiled ones, in which the matrix exists nowhere.
"""

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from triton_rankloss.reference import alrp, ap, dense, rank_sort

from ..turns import DEVICE
from .ranking import Formula

ELEMENTS_AT_ONCE = 2**18 if DEVICE == "cpu" else 2**27  # on a CPU what stays in a core's cache


def count(candidates: Tensor, positives: Tensor, delta: float, masses: Tensor | None = None) -> Tensor:
    """sum_j m_j H(n_j - p_i), [P]; with masses the candidates are the positives, and need no blocks."""
    if masses is not None:
        return matrix(candidates, positives, delta) @ masses
    return sum(matrix(block, positives, delta).sum(1) for block in blocks(candidates, positives))


def transport(candidates: Tensor, positives: Tensor, weights: Tensor, delta: float) -> Tensor:
    """sum_i w_i H(n_j - p_i), [N]."""
    carried = torch.empty_like(candidates)
    for block, out in zip(blocks(candidates, positives), blocks(carried, positives), strict=True):
        torch.mv(matrix(block, positives, delta).t(), weights, out=out)
    return carried


def blocks(candidates: Tensor, positives: Tensor) -> tuple[Tensor, ...]:
    return candidates.split(max(1, ELEMENTS_AT_ONCE // positives.numel()))


def matrix(candidates: Tensor, positives: Tensor, delta: float) -> Tensor:
    """H(n_j - p_i), [P, N]."""
    if delta == 0:
        return (candidates[None, :] >= positives[:, None]).to(candidates.dtype)
    scale = 1 / (2 * delta)
    return torch.sub((candidates * scale)[None, :], (positives * scale - 0.5)[:, None]).clamp_(0, 1)


def whole_transport(candidates: Tensor, positives: Tensor, weights: Tensor, delta: float) -> Tensor:
    """As a sum, into which a compiler fuses the matrix; for a product it would keep it."""
    return (weights[:, None] * dense.step(candidates[None, :] - positives[:, None], delta)).sum(0)


@cache
def compiled(function: Any) -> Any:
    """`function` compiled once, for every size."""
    # Past the limit a function runs in eager mode, without a word.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function, dynamic=True)


BLOCKS = SimpleNamespace(count=count, transport=transport)
FUSED = SimpleNamespace(
    count=lambda *scores: compiled(dense.count)(*scores), transport=lambda *scores: compiled(whole_transport)(*scores)
)


def formulas(engine: Any) -> dict[str, Formula]:
    """By loss, with the products of `engine`; aLRP Loss also makes the gradient of the errors, as ours does."""

    def of_rank_sort(*arguments: Any) -> Any:
        *losses, ranking, carried, sorting = rank_sort.rank_sort_loss(*arguments, engine=engine)
        return losses, ranking + sorting, carried

    return {
        "ap": lambda *arguments: split(ap.ap_loss(*arguments, engine=engine), 1),
        "alrp": lambda *arguments: split(alrp.alrp_loss(*arguments, engine=engine), 2),
        "rank_sort": of_rank_sort,
    }


def split(found: tuple[Tensor, ...], num_losses: int) -> Any:
    return found[:num_losses], *found[num_losses : num_losses + 2]

"""Every implementation that is compared, under one signature: `peer(logits, problem)` returns the loss, a scalar."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

import triton_rankloss as trl

from ..workloads import Problem
from . import bucketed, compiled, loop, vectorized

OURS = "ours"


@dataclass(frozen=True)
class Peer:
    """One implementation of one loss."""

    name: str
    loss: Callable[[Tensor, Problem], Tensor]
    exact: bool = True
    needs_compiler: bool = False


def _ours_alrp(logits: Tensor, problem: Problem) -> Tensor:
    return sum(trl.alrp_loss(logits, problem.targets, 1 - problem.iou))


def _ours_rank_sort(logits: Tensor, problem: Problem) -> Tensor:
    return sum(trl.rank_sort_loss(logits, problem.targets, problem.iou))


def _peer(name: str, module, loss: str, *, exact: bool = True, needs_compiler: bool = False, **options) -> Peer:
    def ap(logits: Tensor, problem: Problem) -> Tensor:
        return module.ap_loss(logits, problem.dense(), **options)

    def alrp(logits: Tensor, problem: Problem) -> Tensor:
        return sum(module.alrp_loss(logits, problem.dense(), 1 - problem.iou, **options))

    def rank_sort(logits: Tensor, problem: Problem) -> Tensor:
        return sum(module.rank_sort_loss(logits, problem.dense(problem.iou), **options))

    return Peer(name, {"ap": ap, "alrp": alrp, "rank_sort": rank_sort}[loss], exact, needs_compiler)


def _ranking(loss: str, ours: Callable[[Tensor, Problem], Tensor]) -> dict[str, Peer]:
    peers = [
        Peer(OURS, ours),
        _peer("loop", loop, loss),
        _peer("bucketed", bucketed, loss, exact=False),
        _peer("bucketed-search", bucketed, loss, exact=False, make_buckets=bucketed.SearchedBuckets),
        _peer("vectorized", vectorized, loss),
        _peer("vectorized-compiled", compiled, loss, needs_compiler=True),
    ]
    return {peer.name: peer for peer in peers}


RANKING = {
    "ap": _ranking("ap", lambda logits, problem: trl.ap_loss(logits, problem.targets)),
    "alrp": _ranking("alrp", _ours_alrp),
    "rank_sort": _ranking("rank_sort", _ours_rank_sort),
}


# Minutes to compile, so measured only when asked for by name.
REFERENCE_COMPILED = Peer(
    "reference-compiled",
    lambda logits, problem: compiled.reference_ap_loss(logits, problem.targets),
    needs_compiler=True,
)

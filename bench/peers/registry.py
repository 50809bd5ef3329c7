"""All losses that are measured: ours beside the peers."""

from collections.abc import Callable
from types import ModuleType

from torch import Tensor

import triton_rankloss as trl

from ..workloads import Boxes, Problem
from . import bucketed, loop, pointwise, vectorized
from .bucketed import SearchedBuckets
from .compiled import FUSED
from .peer import OURS, Loss, Peer, compiled


def _ours_ap(logits: Tensor, problem: Problem) -> Tensor:
    return trl.ap_loss(logits, problem.targets)


def _ours_alrp(logits: Tensor, problem: Problem) -> Tensor:
    return sum(trl.alrp_loss(logits, problem.targets, 1 - problem.iou))


def _ours_rank_sort(logits: Tensor, problem: Problem) -> Tensor:
    return sum(trl.rank_sort_loss(logits, problem.targets, problem.iou))


def _losses_of(module: ModuleType, **options: object) -> dict[str, Loss]:
    def ap(logits: Tensor, problem: Problem) -> Tensor:
        return module.ap_loss(logits, problem.dense(), **options)

    def alrp(logits: Tensor, problem: Problem) -> Tensor:
        return sum(module.alrp_loss(logits, problem.dense(), 1 - problem.iou, **options))

    def rank_sort(logits: Tensor, problem: Problem) -> Tensor:
        return sum(module.rank_sort_loss(logits, problem.dense(problem.iou), **options))

    return {"ap": ap, "alrp": alrp, "rank_sort": rank_sort}


_LOSSES = {
    OURS: {"ap": _ours_ap, "alrp": _ours_alrp, "rank_sort": _ours_rank_sort},
    "loop": _losses_of(loop),
    "bucketed": _losses_of(bucketed),
    "bucketed-search": _losses_of(bucketed, make_buckets=SearchedBuckets),
    "vectorized": _losses_of(vectorized),
    "vectorized-compiled": _losses_of(vectorized, matrix=FUSED),
}
RANKING = {
    loss: [Peer(name, losses[loss], exact=not name.startswith("bucketed")) for name, losses in _LOSSES.items()]
    for loss in ("ap", "alrp", "rank_sort")
}


def _ours_iou_balanced_focal(logits: Tensor, problem: Problem) -> Tensor:
    return trl.iou_balanced_focal_loss(logits, problem.targets, problem.iou_per_anchor)


def _ours_iou_balanced_cross_entropy(logits: Tensor, problem: Problem) -> Tensor:
    return trl.iou_balanced_cross_entropy_loss(logits, problem.softmax_labels, problem.iou_per_anchor)


def _ours_dr(logits: Tensor, problem: Problem) -> Tensor:
    return trl.dr_loss(logits, problem.targets)


def _ours_harmonic(logits: Tensor, problem: Problem) -> Tensor:
    return trl.harmonic_detection_loss(
        logits, problem.targets, problem.boxes, problem.target_boxes, classification="focal"
    )


def _ours_giou(boxes: Tensor, problem: Boxes) -> Tensor:
    return trl.generalized_box_iou_loss(boxes, problem.target_boxes, reduction="sum")


def _focal(logits: Tensor, problem: Problem) -> Tensor:
    return pointwise.focal(logits, problem.labels, problem.divisor)


YARDSTICK = Peer("torchvision-focal", _focal, truth=_focal)  # another loss: what every detector already pays


def _formulas(ours: Loss, formula: Callable[..., Tensor], *arguments: str, yardstick: bool = True) -> list[Peer]:
    def eager(leaf: Tensor, problem: object) -> Tensor:
        return formula(leaf, *(getattr(problem, name) for name in arguments))

    def fused(leaf: Tensor, problem: object) -> Tensor:
        return compiled(formula)(leaf, *(getattr(problem, name) for name in arguments))

    peers = [Peer(OURS, ours), Peer("formula", eager), Peer("formula-compiled", fused)]
    return [*peers, YARDSTICK] if yardstick else peers


POINTWISE = {
    "iou_balanced_focal": _formulas(
        _ours_iou_balanced_focal, pointwise.iou_balanced_focal, "labels", "iou_per_anchor", "divisor"
    ),
    "iou_balanced_cross_entropy": _formulas(
        _ours_iou_balanced_cross_entropy, pointwise.iou_balanced_cross_entropy, "softmax_labels", "iou_per_anchor"
    ),
    "dr": _formulas(_ours_dr, pointwise.dr, "labels"),
    "harmonic": _formulas(
        _ours_harmonic, pointwise.harmonic, "labels", "positions", "boxes", "target_boxes", "divisor"
    ),
    "giou": _formulas(_ours_giou, pointwise.giou, "target_boxes", yardstick=False),
}


def peers_of(loss: str) -> list[Peer]:
    """All implementations of a loss."""
    return (RANKING | POINTWISE)[loss]


def truth_of(loss: str) -> Loss:
    """What is right, given float64: the whole matrix, or the formula."""
    return _LOSSES["vectorized"][loss] if loss in RANKING else POINTWISE[loss][1].loss

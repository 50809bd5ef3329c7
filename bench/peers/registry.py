"""All losses that are measured: ours beside the peers."""

from torch import Tensor

import triton_rankloss as rankloss

from ..workloads import find_positions
from . import OURS, Given, Loss, Peer, bucketed, loop, pointwise, vectorized
from .ranking import Formula, ranking_losses
from .vectorized import compiled

OUR_LOSSES: dict[str, Loss] = {
    "ap": lambda x, given: rankloss.ap_loss(x, given["targets"]),
    "alrp": lambda x, given: sum(rankloss.alrp_loss(x, given["targets"], 1 - given["iou"])),
    "rank_sort": lambda x, given: sum(rankloss.rank_sort_loss(x, given["targets"], given["iou"])),
    "iou_balanced_focal": lambda x, given: rankloss.iou_balanced_focal_loss(
        x, given["targets"], given["iou_per_anchor"]
    ),
    "iou_balanced_cross_entropy": lambda x, given: rankloss.iou_balanced_cross_entropy_loss(
        x, given["softmax_labels"], given["iou_per_anchor"]
    ),
    "dr": lambda x, given: rankloss.dr_loss(x, given["targets"]),
    "harmonic": lambda x, given: rankloss.harmonic_detection_loss(
        x, given["targets"], given["boxes"], given["target_boxes"], classification="focal"
    ),
    "giou": lambda x, given: rankloss.generalized_box_iou_loss(x, given["target_boxes"], reduction="sum"),
}
RANKING = {
    "loop": loop.FORMULAS,
    "bucketed": bucketed.formulas(bucketed.Buckets),
    "bucketed-search": bucketed.formulas(bucketed.SearchedBuckets),
    "vectorized": vectorized.formulas(vectorized.BLOCKS),
    "vectorized-compiled": vectorized.formulas(vectorized.FUSED),
}
# Another loss: what every detector already pays.
YARDSTICK = Peer("torchvision-focal", pointwise.sigmoid_focal, truth=pointwise.sigmoid_focal)


def ranking_loss(loss: str, formula: Formula) -> Loss:
    """The sum of the parts."""

    def total(logits: Tensor, given: Given) -> Tensor:
        values = {"ap": None, "alrp": 1 - given["iou"], "rank_sort": given["iou"]}[loss]
        return sum(ranking_losses(formula, logits, dense(logits, given), values, 0.5 if loss == "rank_sort" else 1.0))

    return total


def dense(logits: Tensor, given: Given) -> Tensor:
    """Targets as the peers take them; a peer that is given labels has to make them, which counts."""
    if given["targets"].is_floating_point():
        return given["targets"]
    targets = given["iou"].new_zeros(logits.shape)
    targets.view(-1)[find_positions(logits, given["labels"])] = 1.0
    return targets


def truth_of(loss: str) -> Loss:
    """What is right, given float64: the matrix of all pairs, or the formula."""
    formula = RANKING["vectorized"].get(loss)
    return ranking_loss(loss, formula) if formula else pointwise.FORMULAS[loss]


def peers_of(loss: str) -> list[Peer]:
    """All implementations of a loss, ours first."""
    ours = Peer(OURS, OUR_LOSSES[loss])
    if loss in loop.FORMULAS:
        losses = {name: ranking_loss(loss, formulas[loss]) for name, formulas in RANKING.items()}
        return [ours, *(Peer(name, of, exact=not name.startswith("bucketed")) for name, of in losses.items())]
    formula = pointwise.FORMULAS[loss]
    others = [Peer("formula", formula), Peer("formula-compiled", lambda x, given: compiled(formula)(x, given))]
    return [ours, *others, *([YARDSTICK] if loss != "giou" else [])]

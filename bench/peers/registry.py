"""All losses that are measured: ours beside the peers."""

from unittest import mock

from torch import Tensor

import triton_rankloss as rankloss

from ..turns import DEVICE
from ..workloads import dense_targets
from . import OURS, YARDSTICK, Given, Loss, Peer, bucketed, loop, pointwise, vectorized
from .ranking import Formula, ranking_loss
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
# The kernels count in one of two forms: how many positives the second is good for is what a GPU has to say.
FORMS = {"ours-bins": 0, "ours-pairs": 2**31}
FOCAL = Peer(YARDSTICK, pointwise.sigmoid_focal, truth=pointwise.sigmoid_focal)


def of_ranking(loss: str, formula: Formula) -> Loss:
    """Peers take dense targets: one that is given labels has to make them, which counts."""

    def run(logits: Tensor, given: Given) -> Tensor:
        iou, targets = given["iou"], given["targets"]
        targets = targets if targets.is_floating_point() else dense_targets(logits, targets)
        values = {"ap": [], "alrp": [1 - iou], "rank_sort": [iou]}[loss]
        return ranking_loss(formula, logits, targets, values, 0.5 if loss == "rank_sort" else 1.0)

    return run


def of_form(loss: str, max_positives_of_pairs: int) -> Loss:
    """Our loss, counted in one form whatever the number of positives."""

    def run(logits: Tensor, given: Given) -> Tensor:
        from triton_rankloss.kernels.ranking import count

        with mock.patch.object(count, "MAX_POSITIVES_OF_PAIRS", max_positives_of_pairs):
            return OUR_LOSSES[loss](logits, given)

    return run


def truth_of(loss: str) -> Loss:
    """What is right, given float64: the matrix of all pairs, or the formula."""
    return pointwise.FORMULAS.get(loss) or of_ranking(loss, RANKING["vectorized"][loss])


def peers_of(loss: str) -> list[Peer]:
    """All implementations of a loss, ours first."""
    ours, formula = Peer(OURS, OUR_LOSSES[loss]), pointwise.FORMULAS.get(loss)
    if formula is None:
        losses = {name: of_ranking(loss, formulas[loss]) for name, formulas in RANKING.items()}
        forms = [Peer(name, of_form(loss, most)) for name, most in FORMS.items() if DEVICE == "cuda"]
        return [ours, *forms, *(Peer(name, of, exact=not name.startswith("bucketed")) for name, of in losses.items())]
    fused = Peer("formula-compiled", lambda x, given: compiled(formula)(x, given))
    return [ours, Peer("formula", formula), fused, *([FOCAL] if loss != "giou" else [])]

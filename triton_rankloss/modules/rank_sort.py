"""Rank & Sort Loss as a module that takes IoU targets from boxes and balances their loss."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..boxes import box_iou_loss, generalized_box_iou_loss
from ..checks import check_number
from ..functional.rank_sort import RankSortLosses, rank_sort_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class RankSortBoxLosses(NamedTuple):
    """The parts of Rank & Sort Loss and its balanced box loss, scalars."""

    ranking: Tensor
    sorting: Tensor
    box: Tensor


class RankSortLoss(nn.Module):
    """Rank & Sort Loss; see :func:`triton_rankloss.rank_sort_loss`.

    Called with boxes it takes the IoU of each pair as target, and returns beside its two parts the mean GIoU loss,
    multiplied by `box_weight` = (ranking + sorting) / box, a constant in backward, so that both tasks weigh the same
    and the training loss is the plain sum of the parts. The last weight is kept in a buffer.

    Source: Oksuz et al., ICCV 2021, arXiv 2107.11669, section 4.3 (task balancing).
    """

    box_weight: Tensor

    def __init__(
        self,
        *,
        delta: float = 0.5,
        eps: float = 1e-10,
        per_image: bool = False,
        group: "ProcessGroup | None" = None,
        max_positives: int | None = None,
    ) -> None:
        super().__init__()
        check_number("delta", delta, 0)
        check_number("eps", eps, 0)
        self.delta = delta
        self.eps = eps
        self.per_image = per_image
        self.group = group
        self.max_positives = max_positives
        self.register_buffer("box_weight", torch.ones(()))

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        iou: Tensor | None = None,
        *,
        pred_boxes: Tensor | None = None,
        target_boxes: Tensor | None = None,
    ) -> RankSortLosses | RankSortBoxLosses:
        """Parts of the loss; with boxes [P, 4] (x1, y1, x2, y2), in row-major order of the positives, three of them."""
        if (pred_boxes is None) != (target_boxes is None) or (iou is not None and pred_boxes is not None):
            raise ValueError("give iou, or pred_boxes and target_boxes together, or neither")
        if pred_boxes is None or target_boxes is None:
            return self._rank_and_sort(logits, targets, iou)
        with torch.no_grad():
            iou = 1 - box_iou_loss(pred_boxes, target_boxes)
        losses = self._rank_and_sort(logits, targets, iou)
        box = generalized_box_iou_loss(pred_boxes, target_boxes, reduction="mean")
        with torch.no_grad():
            weight = (losses.ranking + losses.sorting) / box
            weight = torch.where(box > 0, weight, self.box_weight).to(self.box_weight.dtype)
            if self.training:
                self.box_weight = weight
        return RankSortBoxLosses(losses.ranking, losses.sorting, box * weight)

    def _rank_and_sort(self, logits: Tensor, targets: Tensor, iou: Tensor | None) -> RankSortLosses:
        return rank_sort_loss(
            logits,
            targets,
            iou,
            delta=self.delta,
            eps=self.eps,
            per_image=self.per_image,
            group=self.group,
            max_positives=self.max_positives,
        )

    def extra_repr(self) -> str:
        return f"delta={self.delta:g}, eps={self.eps:g}, per_image={self.per_image}"

"""DR Loss."""

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..functional import dr as functional

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class DRLoss(nn.Module):
    """See :func:`triton_rankloss.dr_loss`."""

    def __init__(
        self,
        *,
        margin: float = 0.5,
        pos_lambda: float = 1.0,
        neg_lambda: float = 0.1 / math.log(3.5),
        L: float = 6.0,
        tau: float = 4.0,
        per_image: bool = False,
        group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__()
        functional.check_parameters(margin, pos_lambda, neg_lambda, L, tau, per_image)
        self.margin = margin
        self.pos_lambda = pos_lambda
        self.neg_lambda = neg_lambda
        self.L = L
        self.tau = tau
        self.per_image = per_image
        self.group = group

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        return functional.dr_loss(
            logits,
            targets,
            margin=self.margin,
            pos_lambda=self.pos_lambda,
            neg_lambda=self.neg_lambda,
            L=self.L,
            tau=self.tau,
            per_image=self.per_image,
            group=self.group,
        )

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin:g}, pos_lambda={self.pos_lambda:g}, neg_lambda={self.neg_lambda:g}, L={self.L:g}, "
            f"tau={self.tau:g}, per_image={self.per_image}"
        )

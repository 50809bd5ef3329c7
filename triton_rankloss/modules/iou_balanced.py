"""IoU-balanced losses: focal, binary cross-entropy, softmax cross-entropy, smooth L1."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..checks import check_number
from ..functional import iou_balanced as functional, iou_balanced_smooth_l1 as smooth_l1

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class IoUBalancedFocalLoss(nn.Module):
    """See :func:`triton_rankloss.iou_balanced_focal_loss`."""

    def __init__(
        self,
        *,
        eta: float = 1.5,
        alpha: float = 0.25,
        gamma: float = 2.0,
        group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__()
        functional.check_focal_parameters(eta, alpha, gamma)
        self.eta = eta
        self.alpha = alpha
        self.gamma = gamma
        self.group = group

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        iou: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        *,
        pred_boxes: Tensor | None = None,
        target_boxes: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar, from `iou` or from boxes."""
        return functional.iou_balanced_focal_loss(
            logits,
            targets,
            iou,
            pred_boxes=pred_boxes,
            target_boxes=target_boxes,
            eta=self.eta,
            alpha=self.alpha,
            gamma=self.gamma,
            avg_factor=avg_factor,
            group=self.group,
        )

    def extra_repr(self) -> str:
        return f"eta={self.eta:g}, alpha={self.alpha:g}, gamma={self.gamma:g}"


class IoUBalancedBCELoss(nn.Module):
    """See :func:`triton_rankloss.iou_balanced_bce_loss`."""

    def __init__(self, *, eta: float = 1.5, group: "ProcessGroup | None" = None) -> None:
        super().__init__()
        check_number("eta", eta, 0)
        self.eta = eta
        self.group = group

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        iou: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        *,
        pred_boxes: Tensor | None = None,
        target_boxes: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar, from `iou` or from boxes."""
        return functional.iou_balanced_bce_loss(
            logits,
            targets,
            iou,
            pred_boxes=pred_boxes,
            target_boxes=target_boxes,
            eta=self.eta,
            avg_factor=avg_factor,
            group=self.group,
        )

    def extra_repr(self) -> str:
        return f"eta={self.eta:g}"


class IoUBalancedCrossEntropyLoss(nn.Module):
    """See :func:`triton_rankloss.iou_balanced_cross_entropy_loss`."""

    def __init__(self, *, eta: float = 1.5, background: int = -1, group: "ProcessGroup | None" = None) -> None:
        super().__init__()
        functional.check_cross_entropy_parameters(eta, background)
        self.eta = eta
        self.background = background
        self.group = group

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        iou: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        *,
        pred_boxes: Tensor | None = None,
        target_boxes: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar, from `iou` or from boxes."""
        return functional.iou_balanced_cross_entropy_loss(
            logits,
            labels,
            iou,
            pred_boxes=pred_boxes,
            target_boxes=target_boxes,
            eta=self.eta,
            background=self.background,
            avg_factor=avg_factor,
            group=self.group,
        )

    def extra_repr(self) -> str:
        return f"eta={self.eta:g}, background={self.background}"


class IoUBalancedSmoothL1Loss(nn.Module):
    """See :func:`triton_rankloss.iou_balanced_smooth_l1_loss`."""

    def __init__(
        self,
        *,
        lambda_: float = 1.5,
        beta: float = 1.0,
        loss_weight: float = 1.0,
        group: "ProcessGroup | None" = None,
    ) -> None:
        super().__init__()
        smooth_l1.check_parameters(lambda_, beta, loss_weight)
        self.lambda_ = lambda_
        self.beta = beta
        self.loss_weight = loss_weight
        self.group = group

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        iou: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        *,
        pred_boxes: Tensor | None = None,
        target_boxes: Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar, from `iou` or from boxes."""
        return smooth_l1.iou_balanced_smooth_l1_loss(
            pred,
            target,
            iou,
            pred_boxes=pred_boxes,
            target_boxes=target_boxes,
            lambda_=self.lambda_,
            beta=self.beta,
            loss_weight=self.loss_weight,
            avg_factor=avg_factor,
            group=self.group,
        )

    def extra_repr(self) -> str:
        return f"lambda_={self.lambda_:g}, beta={self.beta:g}, loss_weight={self.loss_weight:g}"

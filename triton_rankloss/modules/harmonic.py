"""Harmonic losses: of single positives, of boxes, and the task-contrastive loss."""

from torch import Tensor, nn

from ..checks import check_bool
from ..functional import harmonic as functional


class HarmonicLoss(nn.Module):
    """See :func:`triton_rankloss.harmonic_loss`."""

    def __init__(self, *, detach_factors: bool = False) -> None:
        super().__init__()
        check_bool("detach_factors", detach_factors)
        self.detach_factors = detach_factors

    def forward(self, classification_losses: Tensor, localization_losses: Tensor) -> Tensor:
        """The loss of each positive."""
        return functional.harmonic_loss(classification_losses, localization_losses, detach_factors=self.detach_factors)

    def extra_repr(self) -> str:
        return f"detach_factors={self.detach_factors}"


class HarmonicIoULoss(nn.Module):
    """See :func:`triton_rankloss.harmonic_iou_loss`."""

    def __init__(self, *, gamma: float = 0.8, reduction: str = "none", eps: float = 1e-7) -> None:
        super().__init__()
        functional.check_iou_parameters(gamma, reduction, eps)
        self.gamma = gamma
        self.reduction = reduction
        self.eps = eps

    def forward(self, pred_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Loss of boxes [..., 4] in pairs."""
        return functional.harmonic_iou_loss(
            pred_boxes, target_boxes, gamma=self.gamma, reduction=self.reduction, eps=self.eps
        )

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, reduction={self.reduction!r}, eps={self.eps:g}"


class TaskContrastiveLoss(nn.Module):
    """See :func:`triton_rankloss.task_contrastive_loss`."""

    def __init__(
        self, *, margin: float = 0.2, activation: str = "sigmoid", background: int = -1, reduction: str = "none"
    ) -> None:
        super().__init__()
        functional.check_task_contrastive_parameters(margin, activation, background, reduction)
        self.margin = margin
        self.activation = activation
        self.background = background
        self.reduction = reduction

    def forward(self, logits: Tensor, targets: Tensor, iou: Tensor) -> Tensor:
        """The loss of each positive, or reduced."""
        return functional.task_contrastive_loss(
            logits,
            targets,
            iou,
            margin=self.margin,
            activation=self.activation,
            background=self.background,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin:g}, activation={self.activation!r}, background={self.background}, "
            f"reduction={self.reduction!r}"
        )

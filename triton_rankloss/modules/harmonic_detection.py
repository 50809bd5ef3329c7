"""Harmonic loss of a whole detection head."""

from torch import Tensor, nn

from ..functional import harmonic_detection as functional


class HarmonicDetectionLoss(nn.Module):
    """See :func:`triton_rankloss.harmonic_detection_loss`."""

    def __init__(
        self,
        *,
        classification: str = "bce",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        background: int = -1,
        beta: float = 1.0,
        iou_weight: float = 1.5,
        iou_gamma: float = 0.8,
        detach_factors: bool = False,
        task_contrastive_weight: float = 0.0,
        task_contrastive_margin: float = 0.2,
        eps: float = 1e-7,
    ) -> None:
        super().__init__()
        functional.check_parameters(
            classification,
            focal_alpha,
            focal_gamma,
            background,
            beta,
            iou_weight,
            iou_gamma,
            detach_factors,
            task_contrastive_weight,
            task_contrastive_margin,
            eps,
        )
        self.classification = classification
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.background = background
        self.beta = beta
        self.iou_weight = iou_weight
        self.iou_gamma = iou_gamma
        self.detach_factors = detach_factors
        self.task_contrastive_weight = task_contrastive_weight
        self.task_contrastive_margin = task_contrastive_margin
        self.eps = eps

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        pred_boxes: Tensor,
        target_boxes: Tensor,
        pred_deltas: Tensor | None = None,
        target_deltas: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
    ) -> Tensor:
        """The loss, a scalar."""
        return functional.harmonic_detection_loss(
            logits,
            targets,
            pred_boxes,
            target_boxes,
            pred_deltas=pred_deltas,
            target_deltas=target_deltas,
            avg_factor=avg_factor,
            classification=self.classification,
            focal_alpha=self.focal_alpha,
            focal_gamma=self.focal_gamma,
            background=self.background,
            beta=self.beta,
            iou_weight=self.iou_weight,
            iou_gamma=self.iou_gamma,
            detach_factors=self.detach_factors,
            task_contrastive_weight=self.task_contrastive_weight,
            task_contrastive_margin=self.task_contrastive_margin,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"classification={self.classification!r}, focal_alpha={self.focal_alpha:g}, "
            f"focal_gamma={self.focal_gamma:g}, background={self.background}, beta={self.beta:g}, "
            f"iou_weight={self.iou_weight:g}, iou_gamma={self.iou_gamma:g}, detach_factors={self.detach_factors}, "
            f"task_contrastive_weight={self.task_contrastive_weight:g}, "
            f"task_contrastive_margin={self.task_contrastive_margin:g}, eps={self.eps:g}"
        )

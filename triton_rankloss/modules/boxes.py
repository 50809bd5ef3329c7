"""Box losses: IoU, GIoU, DIoU, CIoU."""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from ..functional import boxes as functional


class _BoxLoss(nn.Module):
    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, reduction: str = "none", eps: float = 1e-7) -> None:
        super().__init__()
        functional.check_parameters(reduction, eps)
        self.reduction = reduction
        self.eps = eps

    def forward(self, boxes1: Tensor, boxes2: Tensor) -> Tensor:
        """Loss of boxes [..., 4] in pairs."""
        return type(self).function(boxes1, boxes2, self.reduction, self.eps)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, eps={self.eps:g}"


class BoxIoULoss(_BoxLoss):
    """See :func:`triton_rankloss.box_iou_loss`."""

    function = staticmethod(functional.box_iou_loss)


class GeneralizedBoxIoULoss(_BoxLoss):
    """See :func:`triton_rankloss.generalized_box_iou_loss`."""

    function = staticmethod(functional.generalized_box_iou_loss)


class DistanceBoxIoULoss(_BoxLoss):
    """See :func:`triton_rankloss.distance_box_iou_loss`."""

    function = staticmethod(functional.distance_box_iou_loss)


class CompleteBoxIoULoss(_BoxLoss):
    """See :func:`triton_rankloss.complete_box_iou_loss`."""

    function = staticmethod(functional.complete_box_iou_loss)

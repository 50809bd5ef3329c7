"""AP Loss as a module."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..checks import check_number
from ..functional.ap import ap_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class APLoss(nn.Module):
    """See :func:`triton_rankloss.ap_loss`."""

    def __init__(
        self,
        *,
        delta: float = 1.0,
        interpolate: bool = True,
        per_image: bool = False,
        group: "ProcessGroup | None" = None,
        max_positives: int | None = None,
    ) -> None:
        super().__init__()
        check_number("delta", delta, 0)
        self.delta = delta
        self.interpolate = interpolate
        self.per_image = per_image
        self.group = group
        self.max_positives = max_positives

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of logits [..., C] or [N] with dense targets or labels."""
        return ap_loss(
            logits,
            targets,
            delta=self.delta,
            interpolate=self.interpolate,
            per_image=self.per_image,
            group=self.group,
            max_positives=self.max_positives,
        )

    def extra_repr(self) -> str:
        return f"delta={self.delta:g}, interpolate={self.interpolate}, per_image={self.per_image}"

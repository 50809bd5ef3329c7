"""aLRP Loss as a module that makes localization errors from boxes and balances its two parts."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..boxes import generalized_box_iou_loss
from ..checks import check_number
from ..functional.alrp import ALRPLosses, alrp_loss

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ALRPLoss(nn.Module):
    r"""aLRP Loss with the self-balancing of its paper; see :func:`triton_rankloss.alrp_loss`.

    The localization part comes out multiplied by `localization_weight`, so that the training loss is the plain sum of
    the two parts. The weight starts at `initial_weight` and after every epoch becomes
    (mean localization + mean classification) / mean localization over that epoch. An epoch ends with a call of
    :meth:`end_epoch`, or by itself after `steps_per_epoch` calls in training mode. The weight and the running sums
    are buffers: they are saved in `state_dict` and cost no host synchronization.

    Boxes are turned into the paper's errors, :math:`e = (1 - \mathrm{GIoU}) / (2 (1 - \tau))`.

    Source: Oksuz et al., NeurIPS 2020, arXiv 2009.13592, sections 4 and 5. The published code hard-codes the number of
    iterations in an epoch.
    """

    localization_weight: Tensor
    sums: Tensor
    num_steps: Tensor

    def __init__(
        self,
        *,
        delta: float = 1.0,
        eps: float = 1e-5,
        tau: float = 0.5,
        initial_weight: float = 50.0,
        steps_per_epoch: int | None = None,
        per_image: bool = False,
        group: "ProcessGroup | None" = None,
        max_positives: int | None = None,
    ) -> None:
        super().__init__()
        check_number("delta", delta, 0)
        check_number("eps", eps, 0)
        check_number("tau", tau, 0, 1, high_open=True)
        check_number("initial_weight", initial_weight, 0)
        if steps_per_epoch is not None:
            check_number("steps_per_epoch", steps_per_epoch, 1)
        self.delta = delta
        self.eps = eps
        self.tau = tau
        self.steps_per_epoch = steps_per_epoch
        self.per_image = per_image
        self.group = group
        self.max_positives = max_positives
        self.register_buffer("localization_weight", torch.tensor(float(initial_weight)))
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        localization_errors: Tensor | None = None,
        *,
        pred_boxes: Tensor | None = None,
        target_boxes: Tensor | None = None,
    ) -> ALRPLosses:
        """Parts of the loss, from errors [P] or from boxes [P, 4] (x1, y1, x2, y2), in row-major order of positives."""
        if localization_errors is None and pred_boxes is not None and target_boxes is not None:
            localization_errors = generalized_box_iou_loss(pred_boxes, target_boxes) / (2 * (1 - self.tau))
        elif localization_errors is None or pred_boxes is not None or target_boxes is not None:
            raise ValueError("give either localization_errors, or pred_boxes and target_boxes")
        losses = alrp_loss(
            logits,
            targets,
            localization_errors,
            delta=self.delta,
            eps=self.eps,
            per_image=self.per_image,
            group=self.group,
            max_positives=self.max_positives,
        )
        weighted = losses._replace(localization=losses.localization * self.localization_weight)
        if self.training:
            self._observe(losses)
        return weighted

    @torch.no_grad()
    def _observe(self, losses: ALRPLosses) -> None:
        self.sums += torch.stack(losses).to(self.sums.dtype)
        self.num_steps += 1
        if self.steps_per_epoch is not None:
            self._rebalance(self.num_steps == self.steps_per_epoch)

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Set the weight from the epoch that ends now; an epoch without localization errors leaves it as it is."""
        self._rebalance(torch.ones_like(self.num_steps, dtype=torch.bool))

    def _rebalance(self, due: Tensor) -> None:
        classification, localization = self.sums
        weight = ((localization + classification) / localization).to(self.localization_weight.dtype)
        # Buffers are replaced, not written to: the graph of this step may hold the weight it used.
        self.localization_weight = torch.where(due & (localization > 0), weight, self.localization_weight)
        self.sums = torch.where(due, 0, self.sums)
        self.num_steps = torch.where(due, 0, self.num_steps)

    def extra_repr(self) -> str:
        return f"delta={self.delta:g}, eps={self.eps:g}, tau={self.tau:g}, steps_per_epoch={self.steps_per_epoch}"

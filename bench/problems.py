"""One input of the losses: what they are given, in the forms that ours and the peers take."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """One input of the ranking losses."""

    logits: Tensor
    labels: Tensor
    iou: Tensor  # [P]: the target of Rank & Sort Loss; its complement is the localization error of aLRP Loss
    as_labels: bool

    @property
    def leaf(self) -> Tensor:
        """What the gradient is taken of."""
        return self.logits

    @property
    def targets(self) -> Tensor:
        """In the workload's form, as our losses take them."""
        return self.labels if self.as_labels else self._dense

    def dense(self, values: Tensor | None = None) -> Tensor:
        """Dense targets, as the peers take them; a peer that is given labels has to make them, which counts."""
        if not self.as_labels:
            return self._dense if values is None else self._dense_iou
        return self._to_dense(values)

    @cached_property
    def _dense(self) -> Tensor:
        return self._to_dense(None)

    @cached_property
    def _dense_iou(self) -> Tensor:
        return self._to_dense(self.iou)

    def _to_dense(self, values: Tensor | None) -> Tensor:
        targets = self.iou.new_zeros(self.logits.shape)
        targets.view(-1)[find_positions(self.logits, self.labels)] = 1.0 if values is None else values
        return targets

    @cached_property
    def softmax_labels(self) -> Tensor:
        """Labels of a softmax in which the last channel is the background."""
        return self.labels.clamp(max=self.logits.shape[-1] - 1)

    @cached_property
    def positions(self) -> Tensor:
        """Flat positions of the positives [P], row-major."""
        return find_positions(self.logits, self.labels)

    @cached_property
    def iou_per_anchor(self) -> Tensor:
        """The IoU of each anchor, 0 for those without a positive."""
        values = self.iou.new_zeros(self.labels.numel())
        values[self.positions // self.logits.shape[-1]] = self.iou
        return values.view(self.labels.shape)

    @cached_property
    def divisor(self) -> Tensor:
        """The number of positives."""
        return self.iou.new_tensor(float(self.iou.numel()))

    @cached_property
    def target_boxes(self) -> Tensor:
        """A box for every positive [P, 4]."""
        low = 100 * self.iou.unsqueeze(1) * self.iou.new_tensor([1.0, 2.0])
        return torch.cat([low, low + 20], 1)

    @cached_property
    def boxes(self) -> Tensor:
        """The box predicted for it: moved so that the IoU varies."""
        return self.target_boxes + 10 * (1 - self.iou.unsqueeze(1))

    def exact(self) -> "Problem":
        """The same, to be computed in float64."""
        return replace(self, logits=self.logits.double(), iou=self.iou.double())


@dataclass(frozen=True)
class Boxes:
    """Pairs of boxes [P, 4]."""

    leaf: Tensor
    target_boxes: Tensor

    def exact(self) -> "Boxes":
        """The same, to be computed in float64."""
        return Boxes(self.leaf.double(), self.target_boxes.double())


def find_positions(logits: Tensor, labels: Tensor) -> Tensor:
    """Flat positions of the positive logits [P], row-major."""
    num_classes = logits.shape[-1]
    labels = labels.reshape(-1)
    anchors = (labels < num_classes).nonzero().squeeze(1)
    return anchors * num_classes + labels[anchors]

"""A call: tensors as they are drawn, for each anchor, and the arguments that a public function gets of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

RANKING = ("ap", "alrp", "rank_sort")
SIGMOID = ("dr", "iou_balanced_focal", "iou_balanced_bce", "harmonic_detection", "task_contrastive")
BOXES = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou", "harmonic_iou")
OTHERS = ("iou_balanced_cross_entropy", "iou_balanced_smooth_l1", "harmonic")
NAMES = (*RANKING, *SIGMOID, *OTHERS, *BOXES)


@dataclass(frozen=True)
class Call:
    """A function, called by its name without `_loss`, and what it is given."""

    name: str
    tensors: dict[str, Tensor]  # with logits: [B, A, ...]; without: [M, ...]
    options: dict[str, Any] = field(default_factory=dict)
    form: dict[str, Any] = field(default_factory=dict)  # what differs between calls that mean the same

    @property
    def is_softmax(self) -> bool:
        return "softmax" in self.options.values() or self.name == "iou_balanced_cross_entropy"

    @property
    def candidates(self) -> tuple[Tensor, Tensor]:
        """(is positive, is negative), [B, A, C]; of softmax labels the positive is the channel itself."""
        logits, targets = self.tensors["logits"], self.tensors["targets"]
        num_classes = logits.shape[-1]
        if targets.dim() == 3:
            return targets == 1, targets == 0
        labels, channels = targets.unsqueeze(-1), torch.arange(num_classes)
        if self.is_softmax:
            background = self.options.get("background", -1) % num_classes
            positive = (labels.clamp(max=num_classes - 1) == channels) & (labels != background)
            return positive, (labels == background).expand_as(positive)
        return labels == channels, (labels >= 0) & (labels != channels)

    def arguments(self) -> dict[str, Any]:
        """What the function is called with."""
        if "logits" not in self.tensors:
            return {**{name: self._laid_out(value) for name, value in self.tensors.items()}, **self.options}
        logits, targets = self.tensors["logits"], self.tensors["targets"]
        positive, anchors = self.candidates[0], self.anchors_shape
        of_logits = anchors if self.form["shape"] == "vector" else (*anchors, logits.shape[-1])
        given = {"logits": logits.reshape(of_logits)}
        dense = targets.dim() == 3
        given["targets"] = (targets.reshape(of_logits) if dense else targets.reshape(anchors)).to(self.form["targets"])
        for name, values in self.tensors.items():
            if name == "values_in_targets":
                given["targets"] = torch.where(positive, values, targets).reshape(of_logits)
            elif name not in ("logits", "targets"):
                per_anchor = self.per_anchor(name)
                given[name] = self.of_anchors(values).select(len(anchors), 0) if per_anchor else values[positive]
        if self.name == "iou_balanced_cross_entropy":
            given["labels"] = given.pop("targets")
        return {**{name: self._laid_out(value) for name, value in given.items()}, **self.options}

    @property
    def anchors_shape(self) -> tuple[int, ...]:
        """Of what labels and values per anchor have the shape."""
        num_images, num_anchors, _ = self.tensors["logits"].shape
        shapes = {
            "images": (num_images, num_anchors),
            "flat": (num_images * num_anchors,),
            "vector": (num_images * num_anchors,),
            "anchor": (),
        }
        return shapes[self.form["shape"]]

    def of_anchors(self, values: Tensor) -> Tensor:
        """From [B, A, C, ...] to [anchors, logits of one anchor, ...]."""
        return values.reshape(*self.anchors_shape, *values.shape[2:])

    def per_anchor(self, name: str) -> bool:
        """Whether values are given for each anchor; a shape that could be either is read so."""
        if name not in ("iou", "pred_boxes", "target_boxes") or self.name == "harmonic_detection":
            return False
        return self.form["per_anchor"] or self.anchors_shape == (int(self.candidates[0].sum()),)

    def of_each_logit(self, name: str) -> Tensor:
        """What is given for each positive or anchor, [B, A, C, ...]."""
        values = self.tensors[name]
        return values[:, :, :1].expand_as(values) if self.per_anchor(name) else values

    def _laid_out(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not self.form["strided"]:
            return value
        if value.dim() > 1 and self.form["strided"] == "transposed":
            return value.transpose(0, 1).contiguous().transpose(0, 1)
        return torch.stack([value, value], -1)[..., 0]

    @property
    def leading(self) -> tuple[int, int]:
        """Sizes of the first two dimensions of all tensors; without logits they share one."""
        shape = next(iter(self.tensors.values())).shape
        return shape[0], shape[1] if "logits" in self.tensors else 0

    def select(self, images: Sequence[int] | None = None, anchors: Sequence[int] | None = None) -> "Call":
        """The call on some images and anchors alone, or without logits on some rows."""
        tensors = self.tensors
        if images is not None:
            tensors = {name: value[list(images)] for name, value in tensors.items()}
        if anchors is not None:
            tensors = {name: value[:, list(anchors)] for name, value in tensors.items()}
        return replace(self, tensors=tensors)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={_code(value)}" for name, value in self.arguments().items())
        return f"rankloss.{self.name}_loss({given})"


def _code(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    numbers = str(value.tolist()).replace("nan", "torch.nan").replace("inf", "torch.inf")
    if value.numel() == 0:
        return f"torch.zeros({tuple(value.shape)}, dtype={value.dtype})"
    return f"torch.tensor({numbers}, dtype={value.dtype})"

"""Every implementation that is compared, under one signature: `loss(leaf, given)` returns a scalar."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

OURS = "ours"
YARDSTICK = "torchvision-focal"  # another loss: what every one-stage detector already pays
Given = dict[str, Tensor]  # all but the leaf, of which the gradient is taken: see workloads.detection
Loss = Callable[[Tensor, Given], Tensor]


@dataclass(frozen=True)
class Peer:
    name: str
    loss: Loss
    exact: bool = True  # it must agree with the truth to rounding; else its error is stated
    truth: Loss | None = None  # what it must agree with, where that is not what the others compute

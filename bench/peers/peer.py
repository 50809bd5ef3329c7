"""One implementation of one loss."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

OURS = "ours"
Loss = Callable[[Tensor, object], Tensor]


@dataclass(frozen=True)
class Peer:
    """`exact`: it must agree with the truth to rounding; else its error is stated."""

    name: str
    loss: Loss
    exact: bool = True
    truth: Loss | None = None  # what it must agree with, where that is not what the others compute


@cache
def compiled(function: Callable) -> Callable:
    """`function` compiled once, for every size."""
    return torch.compile(function, dynamic=True)

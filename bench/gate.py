"""The correctness gate: what is wrong gets no speed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Bounds on the error of an exact one: float32 sums of a million terms, and rounding of the gradient to its dtype.
LIMIT = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 8e-3}
# Of buckets the loss is close, the gradient need not be: all members of a bucket share equally. On a ramp of H from 0
# under a density that falls exponentially, E|x - E x| / E x = 2 / e of it goes to the wrong ones.
LIMIT_OF_APPROXIMATE_LOSS = 0.5
LIMIT_OF_APPROXIMATE_GRADIENT = 0.75


class RedCheckError(AssertionError):
    """An implementation does not compute what it is measured for."""


@dataclass(frozen=True)
class Errors:
    """Against float64 on the same inputs; of gradients, the worse of positives and negatives."""

    loss: float  # |l - l*| / |l*|
    gradient: float  # sum |g - g*| / sum |g*|
    largest: float  # max |g - g*| / max |g*|


def errors(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], groups: list[Tensor]) -> Errors:
    """Errors of `actual` (loss, gradient), the gradient's within each of `groups` (masks) by itself.

    Positives and negatives are compared apart: a negative's share of the gradient is smaller by orders of magnitude.
    """
    (loss, gradient), (true_loss, true_gradient) = actual, expected
    mean, largest = 0.0, 0.0
    for group in groups:
        truth = true_gradient[group]
        difference = (gradient[group].double() - truth).abs()
        mean = max(mean, ratio(difference.sum(), truth.abs().sum()))
        largest = max(largest, ratio(difference.max(), truth.abs().max()) if truth.numel() else 0.0)
    return Errors(ratio((loss.double() - true_loss).abs(), true_loss.abs()), mean, largest)


def ratio(difference: Tensor, scale: Tensor) -> float:
    """`difference` / `scale`; 0 where nothing differs, also from zero."""
    return 0.0 if difference == 0 else (difference / scale).item()


def check(found: Errors, dtype: torch.dtype, exact: bool) -> None:
    """Raise where the errors are beyond what the dtype, or the declared approximation, explains."""
    of_loss = LIMIT[dtype] if exact else LIMIT_OF_APPROXIMATE_LOSS
    of_gradient = LIMIT[dtype] if exact else LIMIT_OF_APPROXIMATE_GRADIENT
    # A NaN fails every comparison, so the comparison is the one that has to hold.
    if not (found.loss <= of_loss and found.gradient <= of_gradient and (found.largest <= of_gradient or not exact)):
        raise RedCheckError(f"{found} beyond {of_loss:g} (loss), {of_gradient:g} (gradient)")


def loss_and_gradient(loss: Callable, problem) -> tuple[Tensor, Tensor]:
    """(loss, gradient of `problem.leaf`)."""
    leaf = problem.leaf.detach().requires_grad_()
    value = loss(leaf, problem)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient

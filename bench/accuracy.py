"""The check that comes before any number: what is wrong gets no speed."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Bounds on the error of an exact one: float32 sums of a million terms, and rounding of the gradient to its dtype.
LIMIT = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 8e-3}
# Of buckets the loss is close, the gradient need not be: all members of a bucket share equally. On a ramp of H from 0
# under a density that falls exponentially, E|x - E x| / E x = 2 / e of it goes to the wrong ones.
LIMIT_OF_APPROXIMATE_LOSS, LIMIT_OF_APPROXIMATE_GRADIENT = 0.5, 0.75


class RedCheckError(AssertionError):
    """An implementation does not compute what it is measured for."""


@dataclass(frozen=True)
class Errors:
    """Against float64 on the same inputs; of gradients, the worse of positives and negatives."""

    error_loss: float  # |l - l*| / |l*|
    error_gradient: float  # sum |g - g*| / sum |g*|
    error_largest: float  # max |g - g*| / max |g*|


def errors(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], groups: list[Any]) -> Errors:
    """Errors of `actual` (loss, gradient), the gradient's within each of `groups` (masks) by itself.

    Positives and negatives are compared apart: a negative's share of the gradient is smaller by orders of magnitude.
    """
    (loss, gradient), (true_loss, true_gradient) = actual, expected
    means, largest = [0.0], [0.0]
    for group in groups:
        truth = true_gradient[group]
        difference = (gradient[group].double() - truth).abs()
        means.append(ratio(difference.sum(), truth.abs().sum()))
        largest.append(ratio(difference.max(), truth.abs().max()) if truth.numel() else 0.0)
    # Python's max would lose a NaN.
    mean, most = (torch.tensor(values).max().item() for values in (means, largest))
    return Errors(ratio((loss.double() - true_loss).abs(), true_loss.abs()), mean, most)


def ratio(difference: Tensor, scale: Tensor) -> float:
    """`difference` / `scale`; 0 where nothing differs, also from zero."""
    return 0.0 if difference == 0 else (difference / scale).item()


def check(found: Errors, dtype: torch.dtype, exact: bool) -> None:
    """Raise where the errors are beyond what the dtype, or the declared approximation, explains."""
    of_loss = LIMIT[dtype] if exact else LIMIT_OF_APPROXIMATE_LOSS
    of_gradient = LIMIT[dtype] if exact else LIMIT_OF_APPROXIMATE_GRADIENT
    largest = found.error_largest if exact else 0.0
    # A NaN fails every comparison, so the comparison is the one that has to hold.
    if not (found.error_loss <= of_loss and found.error_gradient <= of_gradient and largest <= of_gradient):
        raise RedCheckError(f"not the loss it should be: {found} beyond {of_loss:g} (loss), {of_gradient:g} (gradient)")

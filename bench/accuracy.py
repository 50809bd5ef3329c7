"""The check that comes before any number: what is wrong gets no speed."""

from typing import Any

import torch
from torch import Tensor

# Bounds on the error of an exact one: float32 sums of a million terms, and rounding of the gradient to its dtype.
LIMIT = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 8e-3}
# Of buckets the loss is close, the gradient need not be: all members of a bucket share equally. On a ramp of H from 0
# under a density that falls exponentially, E|x - E x| / E x = 2 / e of it goes to the wrong ones.
LIMITS_OF_APPROXIMATION = (0.5, 0.75, float("inf"))


class RedCheckError(AssertionError):
    """An implementation does not compute what it is measured for."""


def errors(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], groups: list[Any]) -> dict[str, float]:
    """Of `actual` (loss, gradient) against float64: |l - l*| / |l*|, sum |g - g*| / sum |g*|, max |g - g*| / max |g*|.

    The gradient's are the worst of `groups` (masks): a negative's share of it is smaller than a positive's by orders of
    magnitude.
    """
    (loss, gradient), (true_loss, true_gradient) = actual, expected
    means, largest = [0.0], [0.0]
    for truth, found in ((true_gradient[group], gradient[group].double()) for group in groups):
        means.append(relative((found - truth).abs().sum(), truth.abs().sum()))
        largest.append(relative((found - truth).abs().max(), truth.abs().max()))
    # Python's max would lose a NaN.
    mean, most = (torch.tensor(values).max().item() for values in (means, largest))
    of_loss = relative((loss.double() - true_loss).abs(), true_loss.abs())
    return {"error_loss": of_loss, "error_gradient": mean, "error_largest": most}


def relative(difference: Tensor, scale: Tensor) -> float:
    """`difference` / `scale`; 0 where nothing differs, also from zero."""
    return 0.0 if difference == 0 else (difference / scale).item()


def check(found: dict[str, float], dtype: torch.dtype, exact: bool) -> None:
    """Raise where the errors are beyond what the dtype, or the declared approximation, explains."""
    limits = (LIMIT[dtype],) * 3 if exact else LIMITS_OF_APPROXIMATION
    # A NaN fails every comparison, so the comparison is the one that has to hold.
    if not all(error <= limit for error, limit in zip(found.values(), limits, strict=True)):
        raise RedCheckError(f"not the loss it should be: {found} beyond {limits}")

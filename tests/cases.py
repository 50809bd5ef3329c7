"""What the tests share: the table of tolerances with the comparison that uses it, kinds of scores, golden vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Largest |error| / max |expected| that rounding to the dtype and accumulation in float32 leave. Triton's interpreter
# truncates where a GPU rounds to bfloat16: one unit in the last place, 2**-7.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def assert_close(
    actual: Any, expected: Any, dtype: torch.dtype | None = None, *, times: float = 1.0, atol: float = 0.0
) -> None:
    """Tensors or numbers are equal to TOLERANCE of `dtype`, by default that of `actual`; NaN only where expected.

    A claim that is sharper or needs more says so by `times`, and one about what should be zero by `atol`.
    """
    dtype = dtype or (actual.dtype if isinstance(actual, Tensor) else torch.float64)
    actual, expected = (
        torch.as_tensor(value, dtype=torch.float64, device="cpu").detach() for value in (actual, expected)
    )
    assert actual.shape == expected.shape
    assert torch.equal(actual.isnan(), expected.isnan()), "NaN in other places"
    error, limit = relative_error(actual, expected), times * TOLERANCE[dtype]
    distance = error * expected[expected.isfinite()].abs().max().item() if error > 0 else 0.0
    assert error <= limit or distance <= atol, f"relative error {error:.1e} > {limit:.1e}: {actual}, not {expected}"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest |actual - expected|, relative to the largest |expected|, where they are finite."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    same = (actual == expected) | (actual.isnan() & expected.isnan())  # infinities as well
    difference = (actual - expected).abs().masked_fill(same, 0)
    if difference.numel() == 0 or not difference.any():
        return 0.0
    scale = expected[expected.isfinite()].abs()
    return (difference.max() / (scale.max() if scale.numel() else scale.sum()).clamp(min=1e-30)).item()


def assert_equal(actual: Any, expected: Any) -> None:
    """Nested tuples and lists of tensors are the same bit for bit; NaN equals NaN."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def golden(family: str) -> list[Path]:
    return sorted(GOLDEN.glob(f"{family}_*.npz"))


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


def scores(kind: str, num_positives: int, num_negatives: int) -> tuple[Tensor, Tensor]:
    """Scores [P], [N] in float64 that float32 can hold, of a kind named in the golden vectors' README."""
    p, n = torch.randn(num_positives), torch.randn(num_negatives)
    if kind == "init":
        p, n = 0.05 * p - 4.6, 0.05 * n - 4.6
    elif kind == "ties":
        p, n = (2 * p).round() / 2, (2 * n).round() / 2
    elif kind == "separated":
        p, n = p + 20, n - 20
    elif kind == "inverted":
        p, n = p - 20, n + 20
    elif kind == "huge":
        p, n = 3000 * p, 3000 * n
    return p.double(), n.double()


KINDS = ("random", "init", "ties", "separated", "inverted", "huge")


def dense(positives: Tensor, negatives: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(logits [N], dense targets [N]) in a shuffled order that keeps positives among themselves in order."""
    num_positives, total = positives.numel(), positives.numel() + negatives.numel()
    places = torch.randperm(total)
    at_positives, at_negatives = places[:num_positives].sort().values, places[num_positives:]
    logits, targets = positives.new_zeros(total), positives.new_zeros(total)
    logits[at_positives], logits[at_negatives] = positives, negatives
    targets[at_positives] = 1 if values is None else values
    return logits, targets

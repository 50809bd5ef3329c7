"""What the tests share: the table of tolerances with the comparison that uses it, kinds of scores, golden vectors."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # the second pass: kernels, slowly
GOLDEN = Path(__file__).parent / "golden"
# Through interpreted kernels, whose float64 has tests of its own.
PRECISE_DTYPES = (torch.float32,) if INTERPRETED else (torch.float64, torch.float32)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Largest |error| / max |expected| that rounding to the dtype and accumulation in float32 leave. Triton's interpreter
# truncates where a GPU rounds to bfloat16: one unit in the last place, 2**-7.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def assert_close(
    actual: Any,
    expected: Any,
    dtype: torch.dtype | None = None,
    *,
    times: float = 1.0,
    atol: float = 0.0,
    each: bool = False,
) -> None:
    """Numbers or tensors are equal to TOLERANCE of `dtype`, by default that of `actual`; NaN only where expected.

    A claim that is sharper than the table, or needs more, says so by `times`, one about what should be 0 by `atol`, and
    one about every entry by `each`.
    """
    dtype = dtype or (actual.dtype if isinstance(actual, Tensor) else torch.float64)
    actual, expected = (
        torch.as_tensor(value, dtype=torch.float64, device="cpu").detach() for value in (actual, expected)
    )
    assert actual.shape == expected.shape
    assert torch.equal(actual.isnan(), expected.isnan()), f"NaN in other places: {actual}, not {expected}"
    limit = times * TOLERANCE[dtype]
    if each or atol > 0:
        scale = expected.abs() if each else expected.abs().max()
        far = (actual - expected).abs() > limit * scale + atol
        assert not far.any(), f"{actual[far]}, not {expected[far]}, by {(actual - expected)[far]}"
    else:
        error = relative_error(actual, expected)
        assert error <= limit, f"relative error {error:.1e} > {limit:.1e}: {actual}, not {expected}"


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest |actual - expected|, relative to the largest |expected|; NaN where one is NaN and the other is not."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    same = (actual == expected) | (actual.isnan() & expected.isnan())  # infinities as well
    difference = (actual - expected).abs().masked_fill(same, 0)
    if not difference.any():
        return 0.0
    return (difference.max() / expected[expected.isfinite()].abs().max().clamp(min=1e-30)).item()


def assert_equal(actual: Any, expected: Any) -> None:
    """Nested tuples and lists of tensors are the same bit for bit; NaN equals NaN."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def golden(family: str) -> list[Path]:
    paths = sorted(GOLDEN.glob(f"{family}_*.npz"))
    if INTERPRETED and family != "rs":
        # Thousands of positives take half a minute there; of the losses, which share a count, Rank & Sort does most.
        paths = [path for path in paths if "manypos" not in path.stem]
    return paths


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


def batch(kind: str, num_images: int, num_anchors: int, num_classes: int, num_positives: int) -> tuple[Tensor, Tensor]:
    """(logits [B, A, C] in float64, labels [B, A]): drawn as `kind`, some anchors ignored."""
    total = num_images * num_anchors * num_classes
    positives, negatives = scores(kind, num_positives, total)
    logits = negatives.view(num_images, num_anchors, num_classes)
    labels = torch.full((num_images, num_anchors), num_classes)
    labels.view(-1)[::7] = -1
    chosen = torch.randperm(num_images * num_anchors)[:num_positives]
    labels.view(-1)[chosen] = torch.randint(0, num_classes, (num_positives,))
    logits.view(-1, num_classes)[chosen, labels.view(-1)[chosen]] = positives
    return logits, labels

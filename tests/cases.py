"""Inputs that the tests of the ranking losses share, and the comparison they use."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Bound on |error| / max |expected| that rounding of the result and float32 accumulation leave, per dtype of the logits.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def golden(family: str) -> list[Path]:
    return sorted(GOLDEN.glob(f"{family}_*.npz"))


def load(path: Path) -> dict[str, Tensor]:
    with np.load(path) as arrays:
        return {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest |actual - expected|, relative to the largest |expected|."""
    expected = expected.detach().double().cpu()
    difference = (actual.detach().double().cpu() - expected).abs()
    if difference.numel() == 0:
        return 0.0
    return (difference.max() / expected.abs().max().clamp(min=1e-30)).item() if difference.max() > 0 else 0.0


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

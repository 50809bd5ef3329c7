"""What is ranked together, as kernels are given it.

A scope is what is ranked together: an image, or the whole batch. Logits are [S, M]: S scopes of M candidates; targets
are dense [S, M] (> 0 positive, 0 negative, else ignored) or labels [S, M / C] (0..C-1 the positive channel of an
anchor, C and above background, below 0 ignored), read as they are: no one-hot, no gather of the logits.

Scores are clamped to +-LARGEST_SCORE, so that an infinity has differences; NaN stays.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..dtypes import result_dtype
from ..targets import are_labels
from .arithmetic import bounded

LARGEST_SCORE = tl.constexpr(2.0**40)  # as in the reference
TRITON_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}


class Scopes(NamedTuple):
    """Logits and targets as the kernels read them: contiguous, with the shape of one scope."""

    logits: Tensor
    targets: Tensor
    num_scopes: int
    num_candidates: int  # M
    num_targets: int  # M, or M / C for labels
    num_classes: int  # C, 1 for dense targets
    labels: bool

    def arguments(self) -> dict[str, object]:
        """The constants of kernels that read candidates."""
        return {
            "NUM_CLASSES": self.num_classes,
            "LABELS": self.labels,
            "COMPUTE": TRITON_DTYPE[result_dtype(self.logits)],
        }


def scopes_of(logits: Tensor, targets: Tensor, per_image: bool) -> Scopes:
    """What is ranked together: each image, or everything."""
    labels = are_labels(logits, targets)
    num_scopes = max(1, logits.shape[0]) if per_image else 1
    if targets.dtype == torch.bool:
        targets = targets.view(torch.uint8)
    elif labels and targets.dtype not in (torch.int32, torch.int64):
        targets = targets.long()  # a narrow dtype need not hold the number of a class
    return Scopes(
        logits.contiguous(),
        targets.contiguous(),
        num_scopes,
        num_candidates=logits.numel() // num_scopes,
        num_targets=targets.numel() // num_scopes,
        num_classes=logits.shape[-1] if labels else 1,
        labels=labels,
    )


@triton.jit
def clamp_scores(x, COMPUTE: tl.constexpr):
    """Scores in COMPUTE; infinite ones become very large finite numbers, NaN stays."""
    return bounded(x.to(COMPUTE), LARGEST_SCORE)

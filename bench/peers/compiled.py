"""torch.compile of the vectorized form.

The matrix is written whole: the compiler fuses it into the sum over it, so it never exists and needs no blocks.
"""

from torch import Tensor

from .common import step
from .peer import compiled


def count(positives: Tensor, negatives: Tensor, delta: float) -> Tensor:
    """sum_j H(n_j - p_i), [P]."""
    return step(negatives[None, :] - positives[:, None], delta).sum(1)


def transport(positives: Tensor, negatives: Tensor, weights: Tensor, delta: float) -> Tensor:
    """sum_i w_i H(n_j - p_i), [N]."""
    return (weights[:, None] * step(negatives[None, :] - positives[:, None], delta)).sum(0)


class Fused:
    """The products with the matrix, each one compiled loop."""

    def count(self, positives: Tensor, negatives: Tensor, delta: float) -> Tensor:
        return compiled(count)(positives, negatives, delta)

    def transport(self, positives: Tensor, negatives: Tensor, weights: Tensor, delta: float) -> Tensor:
        return compiled(transport)(positives, negatives, weights, delta)


FUSED = Fused()

"""Sigmoid focal loss of a single logit (Lin et al., ICCV 2017, arXiv 1708.02002)."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def focal(score: Tensor, gamma: float) -> Tensor:
    """-(1 - p)^gamma log p, p = sigmoid(s): of a positive with logit s, of a negative with logit -s."""
    # (1 - p)^gamma as a power of e: its derivative is finite where 1 - p underflows
    return -(gamma * logsigmoid(-score)).exp() * logsigmoid(score)

"""Sigmoid focal loss, and as its case gamma = 0 binary cross-entropy, of every logit by itself."""

import torch
from torch import Tensor
from torch.nn.functional import softplus


def focal(score: Tensor, gamma: float) -> Tensor:
    """-(1 - p)^gamma log p, p = sigmoid(s): of a positive with logit s, of a negative with logit -s."""
    opposite = -score
    missing = opposite.sigmoid() + torch.finfo(score.dtype).tiny  # at 0 a power below 1 has no finite derivative
    return missing.pow(gamma) * softplus(opposite, threshold=40)

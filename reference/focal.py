"""Sigmoid focal loss, and as its case gamma = 0 binary cross-entropy, of every logit by itself."""

import torch
from torch import Tensor
from torch.nn.functional import softplus


def focal(score: Tensor, gamma: float) -> Tensor:
    """-(1 - p)^gamma log p, p = sigmoid(s): of a positive with logit s, of a negative with logit -s."""
    return focal_of_negatives(-score, gamma)


def focal_of_negatives(logits: Tensor, gamma: float) -> Tensor:
    """-p^gamma log(1 - p), p = sigmoid(x): the same from the logit of a negative."""
    p = logits.sigmoid()
    if gamma < 1:
        p = p + torch.finfo(p.dtype).tiny  # at 0 a power below 1 has no finite derivative
    return p.pow(gamma) * softplus(logits, threshold=40)

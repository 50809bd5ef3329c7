"""Count, b_i = sum_j H(n_j - p_i), in the cheaper of two forms: bins.py or pairs.py.

Instructions of a warp for 256 logits, counted in the code compiled for sm_90 (not yet measured on a GPU):
    bins     260; where scores are spread over the kinks 530 to 760, with an atomic addition for each relevant negative
    pairs    525, and 16 |P| for as many negatives that are spread over the kinks
By these, bins are far ahead where negatives share a bin, and pairs ahead by little for few positives where none do. The
atomic additions are what no count can price: should a GPU be slow at them, MAX_POSITIVES_OF_PAIRS is the one number to
change; `make gpu` measures both.
"""

import torch
from torch import Tensor

from ..candidates import Scopes
from ..listing import Positives
from . import bins, pairs
from .kinks import Kinks

MAX_POSITIVES_OF_PAIRS = 4
MAX_SCOPES_OF_PAIRS = 1024  # a grid has no more than 65,535 of them, and every one costs lists


def count(scopes: Scopes, positives: Positives, kinks: Kinks, delta: float) -> Tensor:
    """b_i [P]: how many negatives of its scope rank above each positive; positives in ascending order."""
    num_positives = positives.scores.numel()
    if num_positives == 0 or scopes.num_candidates == 0:
        return torch.zeros_like(positives.scores)
    if num_positives <= MAX_POSITIVES_OF_PAIRS and scopes.num_scopes <= MAX_SCOPES_OF_PAIRS:
        return pairs.count(scopes, positives, delta)
    return bins.count(scopes, positives, kinks, delta)

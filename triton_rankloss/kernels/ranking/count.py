"""Count, b_i = sum_j H(n_j - p_i), in the cheaper of two forms: bins.py or pairs.py.

Instructions of a warp for 256 logits, counted in PTX for sm_90 (not yet measured on a GPU):
    bins     200; 490 where 1 % of the negatives matter, 570 to 670 where all do, one at a time
    pairs    1450 where all share a bin; 1590 to 1730 where all matter, with eight and with four positives
By these, bins are ahead everywhere. What no count can price is their atomic additions, which fall on the fewest
addresses where positives are fewest: up to four, pairs stay until a GPU has decided. `make gpu` measures both forms;
MAX_POSITIVES_OF_PAIRS is the one number to change.
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

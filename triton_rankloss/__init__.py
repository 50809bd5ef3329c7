"""Losses for training object detectors that rank candidates or weigh them by IoU."""

from .functional import (
    ALRPLosses as ALRPLosses,
)
from .functional import (
    RankSortLosses as RankSortLosses,
)
from .functional import (
    alrp_loss as alrp_loss,
)
from .functional import (
    ap_loss as ap_loss,
)
from .functional import (
    rank_sort_loss as rank_sort_loss,
)

__version__ = "0.1.0"

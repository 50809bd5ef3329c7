"""The losses as modules: they store hyper-parameters and call the functions."""

from .alrp import ALRPLoss as ALRPLoss
from .ap import APLoss as APLoss
from .dr import (
    DRLoss as DRLoss,
)
from .iou_balanced import (
    IoUBalancedBCELoss as IoUBalancedBCELoss,
    IoUBalancedCrossEntropyLoss as IoUBalancedCrossEntropyLoss,
    IoUBalancedFocalLoss as IoUBalancedFocalLoss,
    IoUBalancedSmoothL1Loss as IoUBalancedSmoothL1Loss,
)
from .rank_sort import RankSortBoxLosses as RankSortBoxLosses, RankSortLoss as RankSortLoss

"""The losses as modules: they store hyper-parameters and call the functions."""

from .alrp import ALRPLoss as ALRPLoss
from .ap import APLoss as APLoss
from .boxes import (
    BoxIoULoss as BoxIoULoss,
    CompleteBoxIoULoss as CompleteBoxIoULoss,
    DistanceBoxIoULoss as DistanceBoxIoULoss,
    GeneralizedBoxIoULoss as GeneralizedBoxIoULoss,
)
from ..dr import (
    DRLoss as DRLoss,
)
from .harmonic import (
    HarmonicIoULoss as HarmonicIoULoss,
    HarmonicLoss as HarmonicLoss,
    TaskContrastiveLoss as TaskContrastiveLoss,
)
from .harmonic_detection import (
    HarmonicDetectionLoss as HarmonicDetectionLoss,
)
from ..iou_balanced import (
    IoUBalancedBCELoss as IoUBalancedBCELoss,
    IoUBalancedFocalLoss as IoUBalancedFocalLoss,
)
from ..iou_balanced_cross_entropy import IoUBalancedCrossEntropyLoss as IoUBalancedCrossEntropyLoss
from ..iou_balanced_smooth_l1 import IoUBalancedSmoothL1Loss as IoUBalancedSmoothL1Loss
from .rank_sort import RankSortBoxLosses as RankSortBoxLosses, RankSortLoss as RankSortLoss

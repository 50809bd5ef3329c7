"""The losses as modules: they store hyper-parameters and call the functions."""

from .boxes import (
    BoxIoULoss as BoxIoULoss,
    CompleteBoxIoULoss as CompleteBoxIoULoss,
    DistanceBoxIoULoss as DistanceBoxIoULoss,
    GeneralizedBoxIoULoss as GeneralizedBoxIoULoss,
)
from .dr import (
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
from .iou_balanced import (
    IoUBalancedBCELoss as IoUBalancedBCELoss,
    IoUBalancedCrossEntropyLoss as IoUBalancedCrossEntropyLoss,
    IoUBalancedFocalLoss as IoUBalancedFocalLoss,
    IoUBalancedSmoothL1Loss as IoUBalancedSmoothL1Loss,
)

"""Losses for training object detectors that rank candidates or weigh them by IoU."""

from importlib.util import find_spec as _find_spec

if _find_spec("triton_rankloss.reference") is None:
    raise ImportError(
        "triton_rankloss.reference is missing. In a checkout it is a symbolic link to the folder reference, and where "
        "git makes no links (core.symlinks=false, usual on Windows) a text file. Install the package, "
        "pip install --editable . or make the link: git config core.symlinks true, "
        "then git checkout -- triton_rankloss/reference"
    )

from .alrp import ALRPLoss as ALRPLoss, ALRPLosses as ALRPLosses, alrp_loss as alrp_loss
from .ap import APLoss as APLoss, ap_loss as ap_loss
from .boxes import (
    BoxIoULoss as BoxIoULoss,
    CompleteBoxIoULoss as CompleteBoxIoULoss,
    DistanceBoxIoULoss as DistanceBoxIoULoss,
    GeneralizedBoxIoULoss as GeneralizedBoxIoULoss,
    box_iou_loss as box_iou_loss,
    complete_box_iou_loss as complete_box_iou_loss,
    distance_box_iou_loss as distance_box_iou_loss,
    generalized_box_iou_loss as generalized_box_iou_loss,
)
from .dr import DRLoss as DRLoss, dr_loss as dr_loss
from .harmonic import (
    HarmonicIoULoss as HarmonicIoULoss,
    HarmonicLoss as HarmonicLoss,
    harmonic_iou_loss as harmonic_iou_loss,
    harmonic_loss as harmonic_loss,
)
from .harmonic_detection import (
    HarmonicDetectionLoss as HarmonicDetectionLoss,
    harmonic_detection_loss as harmonic_detection_loss,
)
from .iou_balanced import (
    IoUBalancedBCELoss as IoUBalancedBCELoss,
    IoUBalancedFocalLoss as IoUBalancedFocalLoss,
    iou_balanced_bce_loss as iou_balanced_bce_loss,
    iou_balanced_focal_loss as iou_balanced_focal_loss,
)
from .iou_balanced_cross_entropy import (
    IoUBalancedCrossEntropyLoss as IoUBalancedCrossEntropyLoss,
    iou_balanced_cross_entropy_loss as iou_balanced_cross_entropy_loss,
)
from .iou_balanced_smooth_l1 import (
    IoUBalancedSmoothL1Loss as IoUBalancedSmoothL1Loss,
    iou_balanced_smooth_l1_loss as iou_balanced_smooth_l1_loss,
)
from .rank_sort import (
    RankSortBoxLosses as RankSortBoxLosses,
    RankSortLoss as RankSortLoss,
    RankSortLosses as RankSortLosses,
    rank_sort_loss as rank_sort_loss,
)
from .statistics import RankingStatistics as RankingStatistics, ranking_statistics as ranking_statistics
from .task_contrastive import (
    TaskContrastiveLoss as TaskContrastiveLoss,
    task_contrastive_loss as task_contrastive_loss,
)

__version__ = "0.1.0"

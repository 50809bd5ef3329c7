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
from .functional import (
    box_iou_loss as box_iou_loss,
    complete_box_iou_loss as complete_box_iou_loss,
    distance_box_iou_loss as distance_box_iou_loss,
    dr_loss as dr_loss,
    generalized_box_iou_loss as generalized_box_iou_loss,
    harmonic_detection_loss as harmonic_detection_loss,
    harmonic_iou_loss as harmonic_iou_loss,
    harmonic_loss as harmonic_loss,
    iou_balanced_bce_loss as iou_balanced_bce_loss,
    iou_balanced_cross_entropy_loss as iou_balanced_cross_entropy_loss,
    iou_balanced_focal_loss as iou_balanced_focal_loss,
    iou_balanced_smooth_l1_loss as iou_balanced_smooth_l1_loss,
    task_contrastive_loss as task_contrastive_loss,
)
from .modules import (
    BoxIoULoss as BoxIoULoss,
    CompleteBoxIoULoss as CompleteBoxIoULoss,
    DistanceBoxIoULoss as DistanceBoxIoULoss,
    DRLoss as DRLoss,
    GeneralizedBoxIoULoss as GeneralizedBoxIoULoss,
    HarmonicDetectionLoss as HarmonicDetectionLoss,
    HarmonicIoULoss as HarmonicIoULoss,
    HarmonicLoss as HarmonicLoss,
    IoUBalancedBCELoss as IoUBalancedBCELoss,
    IoUBalancedCrossEntropyLoss as IoUBalancedCrossEntropyLoss,
    IoUBalancedFocalLoss as IoUBalancedFocalLoss,
    IoUBalancedSmoothL1Loss as IoUBalancedSmoothL1Loss,
    TaskContrastiveLoss as TaskContrastiveLoss,
)
from .rank_sort import (
    RankSortBoxLosses as RankSortBoxLosses,
    RankSortLoss as RankSortLoss,
    RankSortLosses as RankSortLosses,
    rank_sort_loss as rank_sort_loss,
)
from .statistics import RankingStatistics as RankingStatistics, ranking_statistics as ranking_statistics

__version__ = "0.1.0"

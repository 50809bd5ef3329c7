"""Losses for training object detectors that rank candidates or weigh them by IoU."""

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
from .functional import (
    ALRPLosses as ALRPLosses,
    RankingStatistics as RankingStatistics,
    RankSortLosses as RankSortLosses,
    alrp_loss as alrp_loss,
    ap_loss as ap_loss,
    dr_loss as dr_loss,
    iou_balanced_bce_loss as iou_balanced_bce_loss,
    iou_balanced_cross_entropy_loss as iou_balanced_cross_entropy_loss,
    iou_balanced_focal_loss as iou_balanced_focal_loss,
    iou_balanced_smooth_l1_loss as iou_balanced_smooth_l1_loss,
    rank_sort_loss as rank_sort_loss,
    ranking_statistics as ranking_statistics,
)
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
from .modules import (
    ALRPLoss as ALRPLoss,
    APLoss as APLoss,
    DRLoss as DRLoss,
    IoUBalancedBCELoss as IoUBalancedBCELoss,
    IoUBalancedCrossEntropyLoss as IoUBalancedCrossEntropyLoss,
    IoUBalancedFocalLoss as IoUBalancedFocalLoss,
    IoUBalancedSmoothL1Loss as IoUBalancedSmoothL1Loss,
    RankSortBoxLosses as RankSortBoxLosses,
    RankSortLoss as RankSortLoss,
)
from .task_contrastive import (
    TaskContrastiveLoss as TaskContrastiveLoss,
    task_contrastive_loss as task_contrastive_loss,
)

__version__ = "0.1.0"

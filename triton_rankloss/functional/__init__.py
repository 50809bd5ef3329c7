"""The losses as functions: they check their arguments and call one operator."""

from .alrp import ALRPLosses as ALRPLosses, alrp_loss as alrp_loss
from .ap import ap_loss as ap_loss
from .boxes import (
    box_iou_loss as box_iou_loss,
    complete_box_iou_loss as complete_box_iou_loss,
    distance_box_iou_loss as distance_box_iou_loss,
    generalized_box_iou_loss as generalized_box_iou_loss,
)
from .harmonic import (
    harmonic_iou_loss as harmonic_iou_loss,
    harmonic_loss as harmonic_loss,
    task_contrastive_loss as task_contrastive_loss,
)
from .harmonic_detection import (
    harmonic_detection_loss as harmonic_detection_loss,
)
from .rank_sort import RankSortLosses as RankSortLosses, rank_sort_loss as rank_sort_loss
from .statistics import RankingStatistics as RankingStatistics, ranking_statistics as ranking_statistics

"""The losses as functions: they check their arguments and call one operator."""

from .alrp import ALRPLosses as ALRPLosses, alrp_loss as alrp_loss
from .ap import ap_loss as ap_loss
from .dr import (
    dr_loss as dr_loss,
)
from .iou_balanced import (
    iou_balanced_bce_loss as iou_balanced_bce_loss,
    iou_balanced_cross_entropy_loss as iou_balanced_cross_entropy_loss,
    iou_balanced_focal_loss as iou_balanced_focal_loss,
)
from .iou_balanced_smooth_l1 import iou_balanced_smooth_l1_loss as iou_balanced_smooth_l1_loss
from .rank_sort import RankSortLosses as RankSortLosses, rank_sort_loss as rank_sort_loss
from .statistics import RankingStatistics as RankingStatistics, ranking_statistics as ranking_statistics

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
    box_iou_loss as box_iou_loss,
)
from .functional import (
    complete_box_iou_loss as complete_box_iou_loss,
)
from .functional import (
    distance_box_iou_loss as distance_box_iou_loss,
)
from .functional import (
    generalized_box_iou_loss as generalized_box_iou_loss,
)
from .functional import (
    rank_sort_loss as rank_sort_loss,
)
from .modules import (
    BoxIoULoss as BoxIoULoss,
)
from .modules import (
    CompleteBoxIoULoss as CompleteBoxIoULoss,
)
from .modules import (
    DistanceBoxIoULoss as DistanceBoxIoULoss,
)
from .modules import (
    GeneralizedBoxIoULoss as GeneralizedBoxIoULoss,
)

__version__ = "0.1.0"

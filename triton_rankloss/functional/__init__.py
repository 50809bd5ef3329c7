"""The losses as functions: they check their arguments and call one operator."""

from .boxes import (
    box_iou_loss as box_iou_loss,
    complete_box_iou_loss as complete_box_iou_loss,
    distance_box_iou_loss as distance_box_iou_loss,
    generalized_box_iou_loss as generalized_box_iou_loss,
)
from .dr import (
    dr_loss as dr_loss,
)
from .harmonic import (
    harmonic_iou_loss as harmonic_iou_loss,
    harmonic_loss as harmonic_loss,
    task_contrastive_loss as task_contrastive_loss,
)
from .harmonic_detection import (
    harmonic_detection_loss as harmonic_detection_loss,
)
from .iou_balanced import (
    iou_balanced_bce_loss as iou_balanced_bce_loss,
    iou_balanced_cross_entropy_loss as iou_balanced_cross_entropy_loss,
    iou_balanced_focal_loss as iou_balanced_focal_loss,
)
from .iou_balanced_smooth_l1 import iou_balanced_smooth_l1_loss as iou_balanced_smooth_l1_loss

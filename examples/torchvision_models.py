"""torchvision's detectors, small enough to be trained on a CPU in minutes, with random weights."""

from collections.abc import Callable
from functools import partial

from detector import conv_block
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import MultiScaleRoIAlign

WIDTH = 32  # channels of the pyramid
STRIDES = (8, 16, 32, 64)
# Nothing was pretrained and batches are small: groups of channels are normalized, in place of frozen batch statistics.
NORM = partial(nn.GroupNorm, 8)
# Scores that a ranking loss has trained have no level of their own: a threshold would drop any of them.
DETECTIONS = {"score_thresh": 0.0, "detections_per_img": 100}


def backbone() -> BackboneWithFPN:
    """The backbone of the example detector under torchvision's feature pyramid, of strides 8 to 64."""
    stages = {
        "stem": nn.Sequential(nn.PixelUnshuffle(2), conv_block(12, 32, 2)),
        "stride8": nn.Sequential(conv_block(32, 64, 2), conv_block(64, 64)),
        "stride16": nn.Sequential(conv_block(64, 96, 2), conv_block(96, 96)),
        "stride32": nn.Sequential(conv_block(96, 96, 2), conv_block(96, 96)),
    }
    body = nn.Sequential()
    for name, stage in stages.items():
        body.add_module(name, stage)
    levels = {"stride8": "0", "stride16": "1", "stride32": "2"}
    return BackboneWithFPN(body, levels, [64, 96, 96], WIDTH, norm_layer=NORM)


def anchors() -> AnchorGenerator:
    """Two squares for each cell."""
    return AnchorGenerator(((20, 40), (56, 80), (112, 160), (224, 320)), ((1.0,),) * len(STRIDES))


def retinanet(num_classes: int, sizes: dict[str, int]) -> RetinaNet:
    """Channel 0 is torchvision's background."""
    head = RetinaNetHead(WIDTH, 2, num_classes + 1, norm_layer=NORM)
    return RetinaNet(backbone(), num_classes + 1, anchor_generator=anchors(), head=head, **sizes, **DETECTIONS)


def fcos(num_classes: int, sizes: dict[str, int]) -> FCOS:
    """Channel 0 is torchvision's background."""
    points = AnchorGenerator(tuple((stride,) for stride in STRIDES), ((1.0,),) * len(STRIDES))
    head = FCOSHead(WIDTH, 1, num_classes + 1)
    head.classification_head = FCOSClassificationHead(WIDTH, 1, num_classes + 1, norm_layer=NORM)
    head.regression_head = FCOSRegressionHead(WIDTH, 1, norm_layer=NORM)
    return FCOS(backbone(), num_classes + 1, anchor_generator=points, head=head, **sizes, **DETECTIONS)


def faster_rcnn(num_classes: int, sizes: dict[str, int]) -> FasterRCNN:
    """Channel 0 is the background."""
    return FasterRCNN(
        backbone(),
        rpn_anchor_generator=anchors(),
        rpn_pre_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_train=100,
        rpn_post_nms_top_n_test=100,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], output_size=5, sampling_ratio=1),
        box_head=TwoMLPHead(WIDTH * 5 * 5, 256),
        box_predictor=FastRCNNPredictor(256, num_classes + 1),
        box_batch_size_per_image=64,
        **sizes,
        **{f"box_{name}": value for name, value in DETECTIONS.items()},
    )


MODELS: dict[str, Callable[[int, dict[str, int]], nn.Module]] = {
    "retinanet": retinanet,
    "fcos": fcos,
    "faster_rcnn": faster_rcnn,
}

"""torchvision's detectors with few layers, for the tests."""

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

NUM_CLASSES = 4  # torchvision counts the background, channel 0
SIZES = {"min_size": 64, "max_size": 64}


def backbone() -> BackboneWithFPN:
    levels = {"layer2": "0", "layer3": "1", "layer4": "2"}
    return BackboneWithFPN(resnet18(weights=None), levels, [128, 256, 512], out_channels=32)


def retinanet() -> RetinaNet:
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 4)
    return RetinaNet(backbone(), NUM_CLASSES, anchor_generator=anchors, **SIZES)


def fcos() -> FCOS:
    points = AnchorGenerator(((8,), (16,), (32,), (64,)), ((1.0,),) * 4)
    return FCOS(backbone(), NUM_CLASSES, anchor_generator=points, score_thresh=0.0, **SIZES)


def faster_rcnn() -> FasterRCNN:
    return FasterRCNN(
        backbone(),
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 4),
        rpn_post_nms_top_n_train=40,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], output_size=3, sampling_ratio=1),
        box_head=TwoMLPHead(32 * 3 * 3, 16),
        box_predictor=FastRCNNPredictor(16, NUM_CLASSES),
        box_score_thresh=0.0,
        **SIZES,
    )


def make(build, device) -> nn.Module:
    torch.manual_seed(0)
    return build().to(device)


def batch_of_two(device) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """Two images of different size; the second has no object."""
    images = [torch.rand(3, 64, 64, device=device), torch.rand(3, 48, 64, device=device)]
    boxes = torch.tensor([[4.0, 4.0, 24.0, 30.0], [20.0, 16.0, 60.0, 60.0]], device=device)
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 3], device=device)},
        {"boxes": boxes[:0], "labels": torch.tensor([], dtype=torch.long, device=device)},
    ]
    return images, targets

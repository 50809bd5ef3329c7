"""torchvision's detectors with the losses; `make test-torchvision` runs this where torchvision is installed.

What is expected comes from torchvision's own losses and detections, or from a calculation by hand.
"""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import triton_rankloss as rankloss

pytest.importorskip("torchvision", reason="torchvision is not installed; make test-torchvision has it")

from torchvision.models import resnet18
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from triton_rankloss.integrations.matches import Matches
from triton_rankloss.integrations.torchvision import match, use_loss

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


@pytest.fixture(params=[retinanet, fcos, faster_rcnn], ids=lambda build: build.__name__)
def model(request, device) -> nn.Module:
    return make(request.param, device)


@pytest.fixture
def batch(device):
    """Two images of different size; the second has no object."""
    images = [torch.rand(3, 64, 64, device=device), torch.rand(3, 48, 64, device=device)]
    boxes = torch.tensor([[4.0, 4.0, 24.0, 30.0], [20.0, 16.0, 60.0, 60.0]], device=device)
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 3], device=device)},
        {"boxes": boxes[:0], "labels": torch.tensor([], dtype=torch.long, device=device)},
    ]
    return images, targets


def the_whole(matches: Matches) -> dict[str, torch.Tensor]:
    return {
        "all": rankloss.dr_loss(matches.logits, matches.labels) + (matches.boxes - matches.target_boxes).abs().mean()
    }


def own_parts(losses: dict[str, torch.Tensor]) -> list[str]:
    """Without those of the region proposals and of the centerness, which stay."""
    return sorted(set(losses) - {"loss_objectness", "loss_rpn_box_reg", "bbox_ctrness"})


def outputs_of(model: nn.Module) -> list[nn.Module]:
    """The last layers, of classes and of boxes."""
    if isinstance(model, FasterRCNN):
        return [model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred]
    return [model.head.classification_head.cls_logits, model.head.regression_head.bbox_reg]


OF_SIGMOIDS = [
    (rankloss.APLoss(), None, ["bbox_regression", "classification"]),
    (rankloss.APLoss(), rankloss.GeneralizedBoxIoULoss(), ["bbox_regression", "classification"]),
    (rankloss.DRLoss(per_image=True), rankloss.HarmonicIoULoss(), ["bbox_regression", "classification"]),
    (rankloss.IoUBalancedFocalLoss(), rankloss.IoUBalancedSmoothL1Loss(), ["bbox_regression", "classification"]),
    (rankloss.IoUBalancedBCELoss(), rankloss.BoxIoULoss("mean"), ["bbox_regression", "classification"]),
    (rankloss.ALRPLoss(), None, ["bbox_regression", "classification"]),
    (rankloss.RankSortLoss(), None, ["bbox_regression", "ranking", "sorting"]),
    (rankloss.HarmonicDetectionLoss(classification="focal"), None, ["detection"]),
    (the_whole, None, ["all"]),
]
OF_SOFTMAX = [
    (rankloss.IoUBalancedCrossEntropyLoss(), None, ["bbox_regression", "classification"]),
    (rankloss.IoUBalancedCrossEntropyLoss(), rankloss.IoUBalancedSmoothL1Loss(), ["bbox_regression", "classification"]),
    (rankloss.HarmonicDetectionLoss(classification="softmax"), None, ["detection"]),
]


@pytest.mark.parametrize(
    ("build", "loss", "box_loss", "parts"),
    [(build, *case) for build in (retinanet, fcos, faster_rcnn) for case in OF_SIGMOIDS]
    + [(faster_rcnn, *case) for case in OF_SOFTMAX],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_every_loss_reaches_classes_and_boxes(build, batch, loss, box_loss, parts, device):
    model = use_loss(make(build, device), copy.deepcopy(loss), box_loss).to(device)
    if build is fcos:  # distances are cut off at 0, where most of them begin
        nn.init.constant_(model.head.regression_head.bbox_reg.bias, 1.0)
    losses = model(*batch)
    assert own_parts(losses) == parts
    assert all(part.dim() == 0 and part.isfinite() for part in losses.values())
    sum(losses.values()).backward()
    assert all(output.weight.grad.abs().sum() > 0 for output in outputs_of(model))


def test_without_objects(model, batch):
    images, (_, empty) = batch
    for loss in (rankloss.APLoss(), rankloss.ALRPLoss(), rankloss.RankSortLoss()):
        use_loss(model, loss).to(images[0].device)
        losses = model(images, [empty, empty])
        assert all(losses[part].item() == 0 for part in own_parts(losses))
        sum(losses.values()).backward()


def test_under_autocast(model, batch, device):
    use_loss(model, rankloss.RankSortLoss())
    with torch.autocast(device.type, torch.bfloat16):
        losses = model(*batch)
    assert all(part.isfinite() for part in losses.values())


def test_weights_keep_their_names(model):
    before = copy.deepcopy(model.state_dict())
    use_loss(model, rankloss.ALRPLoss())
    after = model.state_dict()
    head = "roi_heads" if isinstance(model, FasterRCNN) else "head"
    assert set(after) == set(before) | {f"{head}.loss.{name}" for name in ("localization_weight", "sums", "num_steps")}
    assert all(torch.equal(after[name], before[name]) for name in before)
    found = model.load_state_dict(before, strict=False)
    assert not found.unexpected_keys


def test_a_loss_is_replaced_by_another(model, batch):
    use_loss(use_loss(model, rankloss.ALRPLoss()), rankloss.RankSortLoss())
    assert own_parts(model(*batch)) == ["bbox_regression", "ranking", "sorting"]
    assert not any("localization_weight" in name for name in model.state_dict())


def test_boxes_are_those_of_the_model(model, batch):
    """Beside a loss of the classes alone, which draws nothing at random."""
    names = {"bbox_regression": "bbox_regression", "bbox_ctrness": "bbox_ctrness"}
    if isinstance(model, FasterRCNN):
        names = {"bbox_regression": "loss_box_reg"}
    if isinstance(model, FCOS):
        nn.init.constant_(model.head.regression_head.bbox_reg.bias, 1.0)
    torch.manual_seed(1)
    stock = model(*batch)
    torch.manual_seed(1)
    ours = use_loss(model, rankloss.APLoss())(*batch)
    for name, theirs in names.items():
        if theirs in stock:
            # Theirs is the mean of means of the images in RetinaNet, and so is ours.
            assert ours[name].item() == pytest.approx(stock[theirs].item(), rel=1e-5), name


def test_all_levels_and_images_are_ranked_together(batch, device):
    model, seen = make(retinanet, device), []
    use_loss(model, lambda matches: seen.append(matches) or {"none": matches.logits.sum() * 0})
    model(*batch)
    (matches,) = seen
    anchors = 3 * (8 * 8 + 4 * 4 + 2 * 2 + 1)
    assert matches.logits.shape == (2, anchors, NUM_CLASSES)
    positive = (matches.labels >= 0) & (matches.labels < NUM_CLASSES)
    assert set(matches.labels[0][positive[0]].tolist()) == {1, 3}
    assert not positive[1].any()
    assert len(matches.boxes) == positive.sum()
    use_loss(model, rankloss.APLoss())
    assert model(*batch)["classification"].item() == pytest.approx(rankloss.ap_loss(*matches[:2]).item(), rel=1e-6)


def test_matches_of_retinanet_by_hand(device):
    anchors = [torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20], [0, 0, 20, 20]], device=device)]
    targets = [{"boxes": torch.tensor([[0.0, 0, 10, 20]], device=device), "labels": torch.tensor([2], device=device)}]
    outputs = {
        "cls_logits": torch.zeros(1, 3, 4, device=device),
        "bbox_regression": torch.zeros(1, 3, 4, device=device),
    }
    coder = make(retinanet, device).box_coder
    found = match(targets, outputs, anchors, [torch.tensor([0, -1, -2], device=device)], coder)
    assert found.labels.tolist() == [[2, 4, -1]]  # an object, background, ignored
    assert found.boxes.tolist() == [[0, 0, 10, 10]]  # no offset: the anchor
    assert found.target_boxes.tolist() == [[0, 0, 10, 20]]
    # Centre half an anchor further down, of twice its height.
    expected = torch.tensor([[0, 0.5, 0, 0.6931]], device=device)
    torch.testing.assert_close(found.target_deltas, expected, atol=1e-4, rtol=0)


def test_matches_of_fcos_by_hand(device):
    points = [torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]], device=device)]  # centres (4, 4) and (12, 4)
    targets = [{"boxes": torch.tensor([[10.0, 0, 20, 12]], device=device), "labels": torch.tensor([1], device=device)}]
    outputs = {
        "cls_logits": torch.zeros(1, 2, 4, device=device),
        "bbox_regression": torch.tensor([[[9.0, 9, 9, 9], [1, 0.5, 2, 0]]], device=device),
    }
    coder = make(fcos, device).box_coder
    found = match(targets, outputs, points, [torch.tensor([-1, 0], device=device)], coder)
    assert found.labels.tolist() == [[4, 1]]
    assert found.boxes.tolist() == [[4, 0, 28, 4]]  # distances to the left, above, right and below, in strides of 8
    assert found.target_deltas.tolist() == [[0.25, 0.5, 1, 1]]


def test_scores_of_fcos_without_centerness(batch, device):
    """They are the roots of the classes' sigmoids, and remain so in an FCOS that merely loads the weights."""
    images, targets = batch
    model = use_loss(make(fcos, device), rankloss.APLoss(), centerness=False)
    losses = model(images, targets)
    assert sorted(losses) == ["bbox_regression", "classification"]
    sum(losses.values()).backward()
    assert model.head.regression_head.bbox_ctrness.weight.grad is None
    model.eval()
    logits = []
    model.head.classification_head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    detections = model(images)
    for found, image_logits in zip(detections, logits[0]):
        assert found["scores"].max().item() == pytest.approx(image_logits.max().sigmoid().sqrt().item(), rel=1e-5)
    stock = fcos().to(device).eval()
    stock.load_state_dict(model.state_dict())
    for found, again in zip(detections, stock(images)):
        assert torch.equal(found["scores"], again["scores"])


def test_softmax_of_faster_rcnn_is_its_own(batch, device):
    """IoU-balanced cross-entropy with exponent 0 is cross-entropy: channels, samples and ignored padding agree."""
    model = make(faster_rcnn, device)
    torch.manual_seed(1)
    stock = model(*batch)
    torch.manual_seed(1)
    ours = use_loss(model, rankloss.IoUBalancedCrossEntropyLoss(eta=0))(*batch)
    assert ours["classification"].item() == pytest.approx(stock["loss_classifier"].item(), rel=1e-5)
    assert ours["loss_objectness"].item() == stock["loss_objectness"].item()


def test_matches_of_faster_rcnn(batch, device):
    """Sampled proposals of an image in a row, filled up with ignored ones where it has fewer; boxes of their class."""
    images, targets = batch
    model, seen = make(faster_rcnn, device), []
    with torch.no_grad():  # a class moves its boxes to the right by 0, 1, 2 or 3 widths
        predictor = model.roi_heads.box_predictor.bbox_pred
        predictor.weight.zero_()
        predictor.bias.view(NUM_CLASSES, 4).copy_(torch.tensor([0.0, 10, 20, 30]).unsqueeze(1) * torch.eye(4)[0])
    use_loss(model, lambda matches: seen.append(matches) or {"none": matches.logits.sum() * 0})
    model(images, targets)
    (matches,) = seen
    background = NUM_CLASSES - 1
    assert matches.logits.shape == (*matches.labels.shape, background)
    assert (matches.labels[0] == -1).any() != (matches.labels[1] == -1).any()
    assert set(matches.labels[0].unique().tolist()) - {-1} == {0, 2, background}  # labels 1 and 3 of torchvision
    assert set(matches.labels[1].unique().tolist()) - {-1} == {background}
    positive = (matches.labels >= 0) & (matches.labels < background)
    assert len(matches.boxes) == positive.sum()
    classes = matches.labels[positive] + 1
    torch.testing.assert_close(matches.deltas[:, 0], 10.0 * classes)
    boxes = targets[0]["boxes"]
    assert torch.equal(matches.target_boxes, torch.where(classes.unsqueeze(1) == 1, boxes[0], boxes[1]))
    # The objects are proposals too: their offsets are 0, and their boxes move by 1 and by 3 of their widths.
    own = (matches.target_deltas == 0).all(1)
    moved = {tuple(box.tolist()) for box in matches.boxes[own].round()}
    assert moved == {(24, 4, 44, 30), (140, 16, 180, 60)}


def test_sigmoid_detections_of_one_class_are_those_of_a_softmax(device):
    """A softmax over (0, x) is the sigmoid of x, so torchvision's own detections are what is expected."""
    torch.manual_seed(0)
    heads = make(faster_rcnn, device).roi_heads
    corners = 40 * torch.rand(60, 2, device=device)
    proposals = torch.cat((corners, corners + 5 + 20 * torch.rand(60, 2, device=device)), dim=1)
    logits = torch.cat((torch.zeros(60, 1), torch.randn(60, 1)), dim=1).to(device)
    arguments = logits, torch.randn(60, 8, device=device), [proposals[:40], proposals[40:]], [(64, 64), (48, 64)]
    heads.score_thresh = 0.4
    expected = heads.postprocess_detections(*arguments)
    model = make(faster_rcnn, device)
    model.roi_heads.score_thresh = 0.4
    found = use_loss(model, rankloss.RankSortLoss()).roi_heads.postprocess_detections(*arguments)
    for ours, theirs in zip(found, expected):
        for image, their_image in zip(ours, theirs, strict=True):
            torch.testing.assert_close(image, their_image)
    assert all(0 < len(image) < 40 for image in found[0])


def test_sigmoid_detections_of_many_classes_by_hand(device):
    heads = use_loss(make(faster_rcnn, device), rankloss.APLoss()).roi_heads
    heads.score_thresh = 0.3
    proposals = [torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [30, 30, 50, 50]], device=device)]
    # Background, then three classes: the first two proposals overlap in class 1, the second is of class 3 as well.
    logits = torch.tensor([[9.0, 2, -9, -9], [9, 1, -9, 0], [9, -9, -9, -9]], device=device)
    boxes, scores, labels = heads.postprocess_detections(logits, torch.zeros(3, 16, device=device), proposals, [(64, 64)])
    assert labels[0].tolist() == [1, 3]
    assert scores[0].tolist() == pytest.approx([0.880797, 0.5], abs=1e-6)  # sigmoids of 2 and 0
    assert boxes[0].tolist() == [[0, 0, 20, 20], [1, 0, 21, 20]]


def test_bad_models(device):
    with pytest.raises(TypeError, match="model must be a torchvision RetinaNet, FCOS or FasterRCNN; got Linear"):
        use_loss(nn.Linear(1, 1), rankloss.APLoss())
    with_masks = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with pytest.raises(TypeError, match="model must be without masks and keypoints; got MaskRCNN"):
        use_loss(with_masks, rankloss.APLoss())
    with pytest.raises(ValueError, match="centerness must be left True: only FCOS has one; got a RetinaNet"):
        use_loss(make(retinanet, device), rankloss.APLoss(), centerness=False)


def test_bad_losses(model):
    with pytest.raises(TypeError, match=r"loss must be one of APLoss, .*; got TaskContrastiveLoss"):
        use_loss(model, rankloss.TaskContrastiveLoss())
    with pytest.raises(TypeError, match=r"loss must be an instance, APLoss\(\); got the class"):
        use_loss(model, rankloss.APLoss)
    with pytest.raises(TypeError, match="loss must be a module or a function of Matches; got str"):
        use_loss(model, "ap")
    with pytest.raises(ValueError, match="box_loss must be None: RankSortLoss has its own"):
        use_loss(model, rankloss.RankSortLoss(), rankloss.BoxIoULoss())
    for loss in (rankloss.IoUBalancedCrossEntropyLoss, rankloss.HarmonicDetectionLoss):
        softmax = {"classification": "softmax"} if loss is rankloss.HarmonicDetectionLoss else {}
        if isinstance(model, FasterRCNN):
            with pytest.raises(ValueError, match="background must be -1"):
                use_loss(model, loss(background=0, **softmax))
        else:
            with pytest.raises(ValueError, match="loss must take sigmoids: the head has no channel for the background"):
                use_loss(model, loss(**softmax))

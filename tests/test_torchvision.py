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

from small_torchvision import batch_of_two, faster_rcnn, fcos, make, retinanet
from torchvision.models.detection import FCOS, FasterRCNN, maskrcnn_resnet50_fpn

from triton_rankloss.integrations.matches import Matches
from triton_rankloss.integrations.torchvision import use_loss


@pytest.fixture(params=[retinanet, fcos, faster_rcnn], ids=lambda build: build.__name__)
def model(request, device) -> nn.Module:
    return make(request.param, device)


@pytest.fixture
def batch(device):
    return batch_of_two(device)


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
    use_loss(model, lambda matches: {"own": matches.logits.sum()})
    assert own_parts(model(*batch)) == ["own"]


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


EXAMPLE = Path(__file__).parent.parent / "examples" / "train_torchvision.py"


def run_example(*arguments: str | Path) -> subprocess.CompletedProcess:
    for module in ("faster_coco_eval", "sklearn", "tqdm"):
        pytest.importorskip(module, reason="what the examples need is not installed")
    command = [sys.executable, EXAMPLE, "--steps", "2", "--batch-size", "2", "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_example(tmp_path):
    arguments = ["--model", "all", "--loss", "rank_sort", "--out", tmp_path]
    done = run_example(*arguments)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [(found["model"], found["loss"]) for found in runs] == [
        (name, "rank_sort") for name in ("retinanet", "fcos", "faster_rcnn")
    ]
    assert "| fcos | rank_sort | 0." in done.stdout
    again = run_example(*arguments)
    assert "seed" not in again.stdout  # nothing was trained
    assert "| fcos | rank_sort | 0." in again.stdout


def test_the_example_says_what_it_cannot_train():
    done = run_example("--model", "faster_rcnn", "--loss", "dr")
    assert done.returncode == 2
    assert "faster_rcnn is not trained with dr here" in done.stderr

"""torchvision's RetinaNet with the losses; `make test-torchvision` runs this where torchvision is installed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import triton_rankloss as rankloss

pytest.importorskip("torchvision", reason="torchvision is not installed; make test-torchvision has it")

from torchvision.models import resnet18
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from triton_rankloss.integrations.torchvision import Matches, match, use_loss

NUM_CLASSES = 4


def small_model() -> RetinaNet:
    torch.manual_seed(0)
    levels = {"layer2": "0", "layer3": "1", "layer4": "2"}
    backbone = BackboneWithFPN(resnet18(weights=None), levels, [128, 256, 512], out_channels=16)
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 4)
    return RetinaNet(backbone, NUM_CLASSES, min_size=64, max_size=64, anchor_generator=anchors)


@pytest.fixture
def model(device) -> RetinaNet:
    return small_model().to(device)


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


@pytest.mark.parametrize(
    ("loss", "box_loss", "parts"),
    [
        (rankloss.APLoss(), None, ["bbox_regression", "classification"]),
        (rankloss.APLoss(), rankloss.GeneralizedBoxIoULoss(), ["bbox_regression", "classification"]),
        (rankloss.DRLoss(per_image=True), rankloss.HarmonicIoULoss(), ["bbox_regression", "classification"]),
        (rankloss.IoUBalancedFocalLoss(), rankloss.IoUBalancedSmoothL1Loss(), ["bbox_regression", "classification"]),
        (rankloss.IoUBalancedBCELoss(), rankloss.BoxIoULoss("mean"), ["bbox_regression", "classification"]),
        (rankloss.ALRPLoss(), None, ["bbox_regression", "classification"]),
        (rankloss.RankSortLoss(), None, ["bbox_regression", "ranking", "sorting"]),
        (rankloss.HarmonicDetectionLoss(classification="focal"), None, ["detection"]),
        (the_whole, None, ["all"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_loss_reaches_both_towers(model, batch, loss, box_loss, parts, device):
    use_loss(model, loss, box_loss).to(device)
    losses = model(*batch)
    assert sorted(losses) == parts
    assert all(part.dim() == 0 and part.isfinite() for part in losses.values())
    sum(losses.values()).backward()
    for tower in (model.head.classification_head, model.head.regression_head):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tower.parameters())


def test_all_levels_and_images_are_ranked_together(model, batch):
    seen = []
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


def test_matches_by_hand(model, device):
    anchors = [torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20], [0, 0, 20, 20]], device=device)]
    targets = [{"boxes": torch.tensor([[0.0, 0, 10, 20]], device=device), "labels": torch.tensor([2], device=device)}]
    outputs = {
        "cls_logits": torch.zeros(1, 3, 4, device=device),
        "bbox_regression": torch.zeros(1, 3, 4, device=device),
    }
    found = match(targets, outputs, anchors, [torch.tensor([0, -1, -2], device=device)], model.box_coder)
    assert found.labels.tolist() == [[2, 4, -1]]  # an object, background, ignored
    assert found.boxes.tolist() == [[0, 0, 10, 10]]  # no offset: the anchor
    assert found.target_boxes.tolist() == [[0, 0, 10, 20]]
    # Centre half an anchor further down, of twice its height.
    expected = torch.tensor([[0, 0.5, 0, 0.6931]], device=device)
    torch.testing.assert_close(found.target_deltas, expected, atol=1e-4, rtol=0)


def test_without_objects(model, batch):
    images, (_, empty) = batch
    for loss in (rankloss.APLoss(), rankloss.ALRPLoss(), rankloss.RankSortLoss()):
        use_loss(model, loss).to(images[0].device)
        losses = model(images, [empty, empty])
        assert all(part.item() == 0 for part in losses.values())
        sum(losses.values()).backward()


def test_under_autocast(model, batch, device):
    use_loss(model, rankloss.RankSortLoss())
    with torch.autocast(device.type, torch.bfloat16):
        losses = model(*batch)
    assert all(part.isfinite() for part in losses.values())


def test_weights_keep_their_names(model):
    before = model.state_dict()
    use_loss(model, rankloss.ALRPLoss())
    after = model.state_dict()
    own = {"head.loss.localization_weight", "head.loss.sums", "head.loss.num_steps"}
    assert set(after) == set(before) | own
    assert all(torch.equal(after[name], before[name]) for name in before)
    model.eval()
    assert not model.head.loss.training


def test_bad_arguments(model):
    with pytest.raises(TypeError, match="model must be a torchvision RetinaNet; got Linear"):
        use_loss(torch.nn.Linear(1, 1), rankloss.APLoss())
    with pytest.raises(TypeError, match=r"loss must be one of APLoss, .*; got TaskContrastiveLoss"):
        use_loss(model, rankloss.TaskContrastiveLoss())
    with pytest.raises(ValueError, match="box_loss must be None: RankSortLoss has its own"):
        use_loss(model, rankloss.RankSortLoss(), rankloss.BoxIoULoss())


def test_the_example():
    for module in ("faster_coco_eval", "sklearn", "tqdm"):
        pytest.importorskip(module, reason="what the examples need is not installed")
    script = Path(__file__).parent.parent / "examples" / "train_torchvision.py"
    done = subprocess.run(
        [sys.executable, script, "--steps", "2", "--batch-size", "2", "--loss", "rank_sort", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rank_sort: AP 0." in done.stdout

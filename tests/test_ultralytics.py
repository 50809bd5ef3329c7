"""YOLO detectors with the losses; `make test-ultralytics` runs this where ultralytics is installed."""

import math

import pytest
import torch

import triton_rankloss as rankloss

pytest.importorskip("ultralytics", reason="ultralytics is not installed; make test-ultralytics has it")

from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG

from triton_rankloss.integrations.ultralytics import replace_class_loss, set_prior, use_loss

CLASSES = 3


def detector(name: str) -> DetectionModel:
    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", nc=CLASSES, verbose=False)
    model.args = DEFAULT_CFG
    return model


@pytest.fixture
def batch() -> dict:
    """Two images; the second has no object."""
    torch.manual_seed(1)
    boxes = torch.tensor([[0.3, 0.3, 0.4, 0.4], [0.6, 0.6, 0.6, 0.5]])  # centre and size, in parts of the image
    return {
        "img": torch.rand(2, 3, 64, 64),
        "batch_idx": torch.zeros(2),
        "cls": torch.tensor([[1.0], [2.0]]),
        "bboxes": boxes,
    }


def parts_of(criterion) -> list:
    return [criterion.one2many, criterion.one2one] if hasattr(criterion, "one2many") else [criterion]


LOSSES = [
    (rankloss.APLoss(), lambda scores, targets, iou: rankloss.ap_loss(scores, targets)),
    (rankloss.DRLoss(per_image=True), lambda scores, targets, iou: rankloss.dr_loss(scores, targets, per_image=True)),
    (rankloss.RankSortLoss(), lambda scores, targets, iou: sum(rankloss.rank_sort_loss(scores, targets, iou))),
    (rankloss.IoUBalancedFocalLoss(), rankloss.iou_balanced_focal_loss),
    (rankloss.IoUBalancedBCELoss(), rankloss.iou_balanced_bce_loss),
    (lambda scores, targets: scores.square().mean(), lambda scores, targets, iou: (scores**2).sum() / scores.numel()),
]


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo26n", "yolov10n"])
def test_the_classes_have_another_loss_and_the_boxes_their_own(name, batch):
    model = detector(name)
    predictions = model(batch["img"])
    own = model.init_criterion()
    seen = []
    for part in parts_of(own):
        part.bce = lambda scores, targets, bce=part.bce: seen.append((scores, targets)) or bce(scores, targets)
    _, expected = own(predictions, batch)
    scores, targets = seen[-1]  # of the part whose losses are shown: the last, one-to-one, where there are two
    positive = targets > 0
    assert positive.any(-1)[0].any()
    assert not positive[1].any()
    for loss, by_hand in LOSSES:
        criterion = model.init_criterion()
        replace_class_loss(criterion, loss)
        _, found = criterion(predictions, batch)
        assert found["cls_loss"].item() == pytest.approx(
            0.5 * by_hand(scores, positive.float(), targets[positive]).item(), rel=1e-5
        )
        others = [key for key in expected if key != "cls_loss"]
        assert len(others) == 2
        assert all(found[key] == expected[key] for key in others)


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_gradients_reach_every_class_head(name, batch):
    model = detector(name)
    model.criterion = model.init_criterion()
    replace_class_loss(model.criterion, rankloss.RankSortLoss())
    model.loss(batch)[0].sum().backward()
    head = model.model[-1]
    for branch in (head.cv3, getattr(head, "one2one_cv3", None)):
        # The coarsest level of so small an image may hold no positive and no negative above one.
        assert branch is None or all(p.grad is not None for p in branch.parameters())
        assert branch is None or any(p.grad.abs().sum() > 0 for p in branch.parameters())


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_the_prior_is_that_of_classes_that_learned_nothing_yet(name):
    head = detector(name).model[-1]
    branches = [head.cv3, head.one2one_cv3] if name == "yolo26n" else [head.cv3]
    for branch in branches:
        branch[1][-1].bias.data[2] = -3.0
    set_prior(head, 0.1)
    start = math.log(0.1 / 0.9)
    for branch in branches:
        found = torch.stack([level[-1].bias for level in branch])
        torch.testing.assert_close(found, torch.tensor([[start] * 3, [start, start, -3.0], [start] * 3]))


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_without_objects(name, batch):
    model = detector(name)
    model.criterion = model.init_criterion()
    replace_class_loss(model.criterion, rankloss.RankSortLoss())
    empty = {**batch, "batch_idx": torch.zeros(0), "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4)}
    loss, parts = model.loss(empty)
    assert parts["cls_loss"] == 0
    loss.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_under_autocast(batch):
    """The model and its criterion; the trainer itself knows autocast on GPUs alone."""
    model = detector("yolov8n")
    model.criterion = model.init_criterion()
    seen = []
    replace_class_loss(
        model.criterion, lambda scores, targets: seen.append(scores) or rankloss.ap_loss(scores, targets)
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss, parts = model.loss(batch)
    assert seen[0].dtype == torch.bfloat16
    assert 0 < parts["cls_loss"] <= 0.5
    loss.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_targets_of_half_precision_are_divided_by_their_sum(dtype):
    """Under autocast the criterion rounds the targets to the dtype of the scores, but not their sum."""
    criterion = detector("yolov8n").init_criterion()
    replace_class_loss(criterion, lambda scores, targets: scores.float().mean())
    scores, targets = torch.full((8, 2000, 4), 3.0, dtype=dtype), torch.rand(8, 2000, 4) + 1
    found = criterion.bce(scores, targets.to(dtype)) / targets.sum()
    assert found.item() == pytest.approx(3, rel=1e-3)  # float16 ends at 65504, below the sum


def test_the_last_loss_is_the_one_that_trains():
    model = YOLO("yolov8n.yaml")
    use_loss(use_loss(model, rankloss.APLoss()), rankloss.RankSortLoss(), prior=0.01)
    (callback,) = (call for call in model.callbacks["on_pretrain_routine_end"] if hasattr(call, "prior"))
    assert isinstance(callback.loss, rankloss.RankSortLoss)
    assert callback.prior == 0.01


def test_bad_arguments():
    model = YOLO("yolov8n.yaml")
    with pytest.raises(TypeError, match=r"loss must be one of APLoss, .*; got ALRPLoss"):
        use_loss(model, rankloss.ALRPLoss())
    with pytest.raises(TypeError, match="or a function of scores and targets; got str"):
        use_loss(model, "ap")
    with pytest.raises(TypeError, match="or a function of scores and targets; got type"):
        use_loss(model, rankloss.APLoss)
    with pytest.raises(TypeError, match="model must be a YOLO for detection; got DetectionModel"):
        use_loss(model.model, rankloss.APLoss())
    with pytest.raises(TypeError, match="model must be a YOLO for detection; got YOLO of SegmentationModel"):
        use_loss(YOLO("yolov8n-seg.yaml"), rankloss.APLoss())
    with pytest.raises(ValueError, match="prior must be > 0 and < 1"):
        use_loss(model, rankloss.APLoss(), prior=1.0)
    weighted = detector("yolov8n")
    weighted.class_weights = torch.ones(CLASSES)
    with pytest.raises(ValueError, match="cls_pw must be 0"):
        replace_class_loss(weighted.init_criterion(), rankloss.APLoss())


@pytest.mark.parametrize(
    ("loss", "got"),
    [(rankloss.rank_sort_loss, "RankSortLosses"), (lambda scores, targets: scores.mean(-1), r"\(2, 84\)")],
)
def test_a_function_must_return_a_scalar(loss, got, batch):
    model = detector("yolov8n")
    model.criterion = model.init_criterion()
    replace_class_loss(model.criterion, loss)
    with pytest.raises(TypeError, match=f"the loss must return a scalar; got {got}"):
        model.loss(batch)

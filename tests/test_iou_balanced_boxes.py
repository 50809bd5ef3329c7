"""IoU-balanced losses that are given boxes in place of IoU."""

import math

import pytest
import torch
from cases import assert_close
from iou_balanced_cases import NUM_CLASSES, gradient_of

import triton_rankloss as trl

BOXES = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
LARGE = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])  # IoU 1 and 1/4


@pytest.fixture
def batch(device):
    """Logits [2, 8, 3] in float64, labels [2, 8], boxes and their targets [2, 8, 4], NaN but for positives."""
    logits = torch.randn(2, 8, NUM_CLASSES, dtype=torch.float64)
    labels = torch.arange(16).view(2, 8) % 5 - 1
    corners = 6 * torch.rand(2, 8, 2, dtype=torch.float64)
    target = torch.cat([corners, corners + 1 + torch.rand(2, 8, 2, dtype=torch.float64)], -1)
    pred = target + torch.randn(2, 8, 4, dtype=torch.float64) / 4
    others = (labels < 0) | (labels == NUM_CLASSES)
    pred[others] = target[others] = torch.nan
    return tuple(tensor.to(device) for tensor in (logits, labels, pred, target))


def iou_by_formula(pred, target):
    overlap = (torch.minimum(pred, target)[..., 2:] - torch.maximum(pred, target)[..., :2]).clamp(min=0).prod(-1)
    areas = (pred[..., 2:] - pred[..., :2]).prod(-1) + (target[..., 2:] - target[..., :2]).prod(-1)
    return overlap / (areas - overlap)


def softmax(logits, labels, iou=None, **options):
    rows = torch.cat([logits, torch.ones_like(logits[..., :1])], -1)
    return trl.iou_balanced_cross_entropy_loss(rows, labels, iou, **options)


CLASSIFICATION = (trl.iou_balanced_focal_loss, trl.iou_balanced_bce_loss, softmax)


@pytest.mark.parametrize("per_anchor", [False, True])
@pytest.mark.parametrize("loss", CLASSIFICATION)
def test_boxes_of_anchors_and_of_positives(loss, per_anchor, batch):
    logits, labels, pred, target = batch
    if not per_anchor:
        is_positive = (labels >= 0) & (labels < NUM_CLASSES)
        pred, target = pred[is_positive], target[is_positive]
    expected, expected_gradient = gradient_of(loss, logits, labels, iou_by_formula(pred, target))
    pred.requires_grad_()
    value, gradient = gradient_of(loss, logits, labels, pred_boxes=pred, target_boxes=target)
    # The box loss adds 1e-7 to the area of the union, which is 1 at least.
    assert_close(value, expected, torch.float32)
    assert_close(gradient, expected_gradient, torch.float32, each=True, atol=1e-9)
    of_pred = torch.autograd.grad(
        loss(logits.requires_grad_(), labels, pred_boxes=pred, target_boxes=target), pred, allow_unused=True
    )
    assert of_pred == (None,)


def test_by_hand(device):
    # Two positives of logit 0 with IoU 1 and 1/4, eta 1/2: weights 1 and 1/2, and Z = 2 / 1.5. No negatives: loss ln 2.
    logits, labels = torch.zeros(2, 1, dtype=torch.float64, device=device), torch.zeros(2, dtype=torch.long).to(device)
    boxes = {"pred_boxes": BOXES.to(device), "target_boxes": LARGE.to(device)}
    value, gradient = gradient_of(trl.iou_balanced_bce_loss, logits, labels, eta=0.5, **boxes)
    assert value.item() == pytest.approx(math.log(2), rel=1e-5)
    assert gradient[:, 0].tolist() == pytest.approx([-1 / 3, -1 / 6], rel=1e-5)
    # Smooth L1, differences of 2: 4 (2 - 1/2) = 6 each, weighted by 1 and 1/2, over 2.
    pred = torch.full((2, 4), 2.0, device=device)
    value, gradient = gradient_of(trl.iou_balanced_smooth_l1_loss, pred, 0 * pred, lambda_=0.5, **boxes)
    assert value.item() == pytest.approx(4.5, rel=1e-6)
    assert gradient[:, 0].tolist() == pytest.approx([0.5, 0.25], rel=1e-6)


@pytest.mark.parametrize("loss", CLASSIFICATION)
def test_boxes_that_hardly_intersect(loss, device):
    """In float32 one minus their box loss has no digits of an IoU of 1e-7."""
    target = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]], device=device)
    pred = torch.tensor([[1 - 3 * 2.0**-24, 0, 2, 1], [0.5, 0, 1.5, 1]], device=device)
    iou = torch.tensor([3 * 2.0**-24 / (2 - 3 * 2.0**-24), 1 / 3], device=device)
    logits, labels = torch.randn(2, NUM_CLASSES, device=device), torch.tensor([0, 1], device=device)
    expected, expected_gradient = gradient_of(loss, logits, labels, iou, eta=1.0)
    value, gradient = gradient_of(loss, logits, labels, eta=1.0, pred_boxes=pred, target_boxes=target)
    assert_close(value, expected)
    assert_close(gradient[0, 0], expected_gradient[0, 0])


def test_modules_hand_boxes_on(batch, device):
    logits, labels, pred, target = batch
    boxes = {"pred_boxes": pred, "target_boxes": target}
    rows = torch.cat([logits, logits[..., :1]], -1)
    for module, function, scores in (
        (trl.IoUBalancedFocalLoss(), trl.iou_balanced_focal_loss, logits),
        (trl.IoUBalancedBCELoss(), trl.iou_balanced_bce_loss, logits),
        (trl.IoUBalancedCrossEntropyLoss(), trl.iou_balanced_cross_entropy_loss, rows),
    ):
        value = module(scores, labels, avg_factor=3, **boxes)
        assert value.isfinite()
        assert value == function(scores, labels, avg_factor=3, **boxes)
    boxes = {"pred_boxes": BOXES.to(device), "target_boxes": LARGE.to(device)}
    value = trl.IoUBalancedSmoothL1Loss()(logits[0, :2], logits[1, :2], **boxes)
    assert value == trl.iou_balanced_smooth_l1_loss(logits[0, :2], logits[1, :2], **boxes)


def test_boxes_go_through_the_fused_kernel(batch, device, interpreted, monkeypatch):
    if not interpreted and device.type != "cuda":
        pytest.skip("no kernels here")
    from triton_rankloss.kernels.pointwise import boxes

    launched, launch = [], boxes.box_loss
    monkeypatch.setattr(boxes, "box_loss", lambda *arguments: launched.append(arguments[2]) or launch(*arguments))
    logits, labels, pred, target = batch
    for loss in CLASSIFICATION:
        loss(logits, labels, pred_boxes=pred, target_boxes=target)
    assert launched == ["overlap"] * len(CLASSIFICATION)


def test_without_positives(device):
    logits, labels = torch.randn(4, 3, device=device), torch.full((4,), 3, device=device)
    none = torch.zeros(0, 4, device=device)
    for loss in CLASSIFICATION:
        value, gradient = gradient_of(loss, logits, labels, pred_boxes=none, target_boxes=none)
        expected, expected_gradient = gradient_of(loss, logits, labels, none[:, 0])
        assert value == expected
        assert torch.equal(gradient, expected_gradient)
    assert trl.iou_balanced_smooth_l1_loss(none, none, pred_boxes=none, target_boxes=none) == 0


def test_compile(batch):
    logits, labels, pred, target = batch
    for loss in CLASSIFICATION:
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        expected, expected_gradient = gradient_of(loss, logits, labels, pred_boxes=pred, target_boxes=target)
        value, gradient = gradient_of(compiled, logits, labels, pred_boxes=pred, target_boxes=target)
        assert_close(value, expected)
        assert_close(gradient, expected_gradient)


@pytest.mark.parametrize(
    ("iou", "boxes", "error", "message"),
    [
        (None, {}, ValueError, "give either iou, or pred_boxes and target_boxes"),
        (torch.ones(2), {"pred_boxes": BOXES}, ValueError, "give either iou, or pred_boxes and target_boxes"),
        (None, {"pred_boxes": BOXES}, ValueError, "give either iou, or pred_boxes and target_boxes"),
        (None, {"target_boxes": BOXES}, ValueError, "give either iou, or pred_boxes and target_boxes"),
        (
            torch.ones(2),
            {"pred_boxes": BOXES, "target_boxes": LARGE},
            ValueError,
            "give either iou, or pred_boxes and target_boxes",
        ),
        (None, {"pred_boxes": [0], "target_boxes": LARGE}, TypeError, "pred_boxes must be a tensor; got list"),
        (
            None,
            {"pred_boxes": BOXES, "target_boxes": LARGE.long()},
            TypeError,
            "target_boxes must have a floating-point dtype; got torch.int64",
        ),
        (
            None,
            {"pred_boxes": BOXES[:, :3], "target_boxes": LARGE},
            ValueError,
            r"pred_boxes must have shape \[..., 4\]; got \(2, 3\)",
        ),
        (
            None,
            {"pred_boxes": BOXES, "target_boxes": LARGE[:1]},
            ValueError,
            r"target_boxes must have the shape .* \(2, 4\); got \(1, 4\)",
        ),
        (
            None,
            {"pred_boxes": BOXES[:1], "target_boxes": LARGE[:1]},
            ValueError,
            r"the IoU of pred_boxes and target_boxes must .*; got .*\(1,\)",
        ),
        (
            None,
            {"pred_boxes": BOXES[None, None], "target_boxes": LARGE[None, None]},
            ValueError,
            r"the IoU of pred_boxes and target_boxes must have shape .*; got \(1, 1, 2\)",
        ),
    ],
)
def test_bad_arguments(iou, boxes, error, message):
    logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    for loss in CLASSIFICATION:
        with pytest.raises(error, match=message):
            loss(logits, labels, iou, **boxes)
    with pytest.raises(error, match=message):
        trl.iou_balanced_smooth_l1_loss(logits, logits, iou, **boxes)

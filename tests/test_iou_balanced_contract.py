"""IoU-balanced losses as PyTorch sees them: bad arguments, modules, operators, compilation."""

import math

import pytest
import torch
from cases import relative_error
from iou_balanced_cases import LOSSES, NUM_CLASSES, gradient_of, make_batch

import triton_rankloss as trl


@pytest.fixture
def batch(device):
    return make_batch(device)


LOGITS, LABELS, IOU = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), torch.ones(4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((LOGITS.long(), LABELS, IOU), {}, TypeError, "logits must have a floating-point dtype; got torch.int64"),
        ((LOGITS, LABELS.float(), IOU), {}, TypeError, "labels must have an integer dtype; got torch.float32"),
        ((LOGITS, LABELS[:3], IOU), {}, ValueError, r"must .* shape .*\(4,\).*; got .*\(3,\)"),
        ((LOGITS, LABELS.to("meta"), IOU), {}, ValueError, "must be on the same device .* cpu; got meta"),
        ((LOGITS, LABELS, IOU.tolist()), {}, TypeError, "iou must be a tensor; got list"),
        ((LOGITS, LABELS, IOU.long()), {}, TypeError, "iou must have a floating-point dtype; got torch.int64"),
        ((LOGITS, LABELS, IOU.view(2, 2)), {}, ValueError, r"iou must have shape \[P\] or \(4,\).*; got \(2, 2\)"),
        ((LOGITS, LABELS, IOU[:3]), {}, ValueError, r"iou must hold one value for each of the 4 positives.* \(3,\)"),
        ((LOGITS, LABELS, IOU), {"eta": -1}, ValueError, "eta must be >= 0 and finite; got -1"),
        ((LOGITS, LABELS, IOU), {"eta": "1"}, TypeError, "eta must be a number; got str"),
        ((LOGITS, LABELS, IOU), {"avg_factor": 0}, ValueError, "avg_factor must be > 0 and finite; got 0"),
        ((LOGITS, LABELS, IOU), {"avg_factor": IOU}, ValueError, r"avg_factor must be a .*; got shape \(4,\)"),
        ((LOGITS, LABELS, IOU), {"avg_factor": "2"}, TypeError, "avg_factor must be a number; got str"),
        ((LOGITS, LABELS, IOU), {"avg_factor": torch.tensor(True)}, TypeError, "avg_factor must have a real dtype"),
        (
            (LOGITS, LABELS, IOU),
            {"avg_factor": torch.tensor(1.0, device="meta")},
            ValueError,
            "avg_factor must be on the same device",
        ),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    for loss in (trl.iou_balanced_focal_loss, trl.iou_balanced_bce_loss, trl.iou_balanced_cross_entropy_loss):
        with pytest.raises(error, match=message):
            loss(*arguments, **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: trl.IoUBalancedFocalLoss(alpha=1.1), ValueError, "alpha must be >= 0 and <= 1 and finite; got 1.1"),
        (lambda: trl.IoUBalancedFocalLoss(gamma=-1), ValueError, "gamma must be >= 0 and finite; got -1"),
        (lambda: trl.IoUBalancedBCELoss(eta=math.nan), ValueError, "eta must be >= 0 and finite; got nan"),
        (
            lambda: trl.IoUBalancedCrossEntropyLoss(background=0.5),
            TypeError,
            "background must be an integer; got float",
        ),
        (lambda: trl.IoUBalancedSmoothL1Loss(beta=-1), ValueError, "beta must be >= 0 and finite; got -1"),
        (lambda: trl.IoUBalancedSmoothL1Loss(lambda_=-1), ValueError, "lambda_ must be >= 0 and finite; got -1"),
        (lambda: trl.IoUBalancedSmoothL1Loss(loss_weight=-1), ValueError, "loss_weight must be >= 0 and finite"),
        (
            lambda: trl.iou_balanced_cross_entropy_loss(LOGITS, LABELS, IOU, background=3),
            ValueError,
            "background must be a channel, -3 to 2; got 3",
        ),
        (
            lambda: trl.iou_balanced_cross_entropy_loss(LOGITS[:, :0], LABELS, IOU),
            ValueError,
            r"logits must have shape \[..., K\], K at least 1; got \(4, 0\)",
        ),
        (
            lambda: trl.iou_balanced_smooth_l1_loss(LOGITS, LOGITS[:3], IOU),
            ValueError,
            r"target must have the shape of pred, \(4, 3\); got \(3, 3\)",
        ),
        (
            lambda: trl.iou_balanced_smooth_l1_loss(LOGITS[0], LOGITS[0], IOU),
            ValueError,
            r"pred must have shape \[P, 4\]; got \(3,\)",
        ),
        (
            lambda: trl.iou_balanced_smooth_l1_loss(LOGITS, LOGITS, IOU[:3]),
            ValueError,
            r"iou must have shape \(4,\); got \(3,\)",
        ),
    ],
)
def test_bad_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_modules(batch):
    logits, labels, iou = batch
    rows = torch.cat([logits, logits[..., :1]], -1)
    focal = trl.IoUBalancedFocalLoss(eta=2.0, alpha=0.5, gamma=1.0)
    assert repr(focal) == "IoUBalancedFocalLoss(eta=2, alpha=0.5, gamma=1)"
    expected = trl.iou_balanced_focal_loss(logits, labels, iou, eta=2.0, alpha=0.5, gamma=1.0, avg_factor=3)
    assert focal(logits, labels, iou, avg_factor=3) == expected
    bce = trl.IoUBalancedBCELoss(eta=2.0)
    assert repr(bce) == "IoUBalancedBCELoss(eta=2)"
    assert bce(logits, labels, iou) == trl.iou_balanced_bce_loss(logits, labels, iou, eta=2.0)
    softmax_loss = trl.IoUBalancedCrossEntropyLoss(eta=2.0, background=3)
    assert repr(softmax_loss) == "IoUBalancedCrossEntropyLoss(eta=2, background=3)"
    assert softmax_loss(rows, labels, iou) == trl.iou_balanced_cross_entropy_loss(rows, labels, iou, eta=2.0)
    box = trl.IoUBalancedSmoothL1Loss(lambda_=2.0, beta=0.5, loss_weight=3.0)
    assert repr(box) == "IoUBalancedSmoothL1Loss(lambda_=2, beta=0.5, loss_weight=3)"
    pred, values = logits[0], iou[0].nan_to_num(0.5)
    expected = trl.iou_balanced_smooth_l1_loss(pred, -pred, values, lambda_=2.0, beta=0.5, loss_weight=3.0)
    assert box(pred, -pred, values) == expected


def smooth_l1(logits, labels, iou, **options):
    return trl.iou_balanced_smooth_l1_loss(logits.flatten(0, -2), logits.flatten(0, -2) ** 2, iou.flatten(), **options)


@pytest.mark.parametrize("loss", [*LOSSES.values(), smooth_l1])
def test_double_backward_compile_and_autocast(loss, batch):
    logits, labels, iou = batch
    iou = iou.nan_to_num(0.5)
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, labels, iou), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives of this loss are not implemented"):
        gradient.sum().backward()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    factor = torch.tensor(3.0, device=logits.device)
    expected, expected_gradient = gradient_of(loss, logits, labels, iou, avg_factor=factor)
    with torch.autocast(logits.device.type, dtype=torch.bfloat16):
        for function in (compiled, loss):
            value, gradient = gradient_of(function, logits, labels, iou, avg_factor=factor)
            assert value.item() == pytest.approx(expected.item(), rel=1e-12)
            assert relative_error(gradient, expected_gradient) < 1e-12
    if loss is not smooth_l1:
        per_positive = iou[(labels >= 0) & (labels < NUM_CLASSES)]
        value, _ = gradient_of(torch.compile(loss, fullgraph=True, backend="aot_eager"), logits, labels, per_positive)
        assert value.item() == pytest.approx(loss(logits, labels, iou).item(), rel=1e-12)


def test_operators(batch):
    logits, labels, iou = batch
    iou = iou.nan_to_num(0.5)
    ops = torch.ops.triton_rankloss
    factor, one = torch.tensor(3.0, device=logits.device), torch.ones((), dtype=torch.float64, device=logits.device)
    leaf, scale = logits.clone().requires_grad_(), torch.rand(2, dtype=torch.float64, device=logits.device)
    forward_checks = [
        (ops.iou_balanced_focal_loss, (leaf, labels, iou, 1.5, 0.75, 0.25, 2.0, None, factor, None)),
        (ops.iou_balanced_cross_entropy_loss, (leaf, labels % NUM_CLASSES, iou, 1.5, 1, 2.0, None, None)),
        (ops.iou_balanced_smooth_l1_loss, (leaf[0], logits[0], iou[0], 1.5, 1.0, 1.0, None, factor)),
    ]
    for op, arguments in forward_checks:
        torch.library.opcheck(op, arguments)
    backward_checks = [
        (ops.iou_balanced_focal_loss_backward, (logits.half(), labels, iou, scale, one, 1.5, 2.0)),
        (ops.iou_balanced_cross_entropy_loss_backward, (logits, labels % NUM_CLASSES, iou, scale, one, 1.5, 1)),
        (ops.iou_balanced_smooth_l1_loss_backward, (logits[0], logits[1], iou[0], one, 1.5, 1.0, 1.0, None, factor)),
        (ops.spread, (iou[labels >= 0], labels >= 0, "iou")),
    ]
    for op, arguments in backward_checks:
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))

"""IoU-balanced losses: the authors' vectors, literal loops over the formulas, cases worked out by hand."""

import math

import pytest
import torch
from cases import DTYPES, TOLERANCE, golden, load, relative_error
from hypothesis import given, settings, strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot, smooth_l1_loss

import triton_rankloss as trl
from triton_rankloss.reference import iou_balanced as reference

NUM_CLASSES = 3


def softmax(logits, labels, iou, **options):
    """With a background channel added behind the classes, so that labels mean what they mean to the others."""
    background = (torch.arange(logits[..., :1].numel(), device=logits.device) % 5 - 2).view_as(logits[..., :1])
    return trl.iou_balanced_cross_entropy_loss(torch.cat([logits, background.to(logits)], -1), labels, iou, **options)


LOSSES = {"focal": trl.iou_balanced_focal_loss, "bce": trl.iou_balanced_bce_loss, "softmax": softmax}
every_loss = pytest.mark.parametrize("kind", LOSSES)


def gradient_of(loss, logits, *arguments, **options):
    leaf = logits.detach().clone().requires_grad_()
    value = loss(leaf, *arguments, **options)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.fixture
def batch(device):
    """Logits [2, 20, 3] in float64, labels [2, 20] and IoU [2, 20], NaN but for positives."""
    logits = 3 * torch.randn(2, 20, NUM_CLASSES, dtype=torch.float64)
    labels = torch.randint(-1, NUM_CLASSES + 1, (2, 20))
    iou = torch.rand(2, 20, dtype=torch.float64)
    iou[(labels < 0) | (labels == NUM_CLASSES)] = torch.nan
    return logits.to(device), labels.to(device), iou.to(device)


def to_dense(labels):
    dense = one_hot(labels.clamp(min=0), NUM_CLASSES + 1)[..., :NUM_CLASSES]
    return dense.masked_fill((labels < 0).unsqueeze(-1), -1)


def literal(kind, logits, labels, iou, eta=1.5, alpha=0.25, gamma=2.0):
    """(sum before avg_factor, gradient of the logits) in Python floats, one anchor and one channel at a time."""
    negatives, positives = [], []  # (loss, weight of a positive, gradient {position: value})
    for a, (row, label) in enumerate(zip(logits, labels)):
        if label < 0:
            continue
        if kind == "softmax":
            exponentials = [math.exp(x) for x in row]
            gradient = {(a, c): e / sum(exponentials) - (c == label) for c, e in enumerate(exponentials)}
            loss = math.log(sum(exponentials)) - row[label]
            (positives if label < len(row) - 1 else negatives).append((loss, a, gradient))
            continue
        for c, x in enumerate(row):
            p = 1 / (1 + math.exp(-x))
            if kind == "bce" and c == label:
                positives.append((-math.log(p), a, {(a, c): p - 1}))
            elif kind == "bce":
                negatives.append((-math.log(1 - p), a, {(a, c): p}))
            elif c == label:  # the derivative of (1 - p)^g log(p) in x is (1 - p)^g ((1 - p) - g p log(p))
                slope = -alpha * (1 - p) ** gamma * ((1 - p) - gamma * p * math.log(p))
                positives.append((-alpha * (1 - p) ** gamma * math.log(p), a, {(a, c): slope}))
            else:
                slope = (1 - alpha) * p**gamma * (p - gamma * (1 - p) * math.log(1 - p))
                negatives.append((-(1 - alpha) * p**gamma * math.log(1 - p), a, {(a, c): slope}))
    weighted = sum(iou[a] ** eta * loss for loss, a, _ in positives)
    z = sum(loss for loss, _, _ in positives) / (weighted + 1e-6)
    gradient = [[0.0] * len(row) for row in logits]
    for terms, weight in ((negatives, lambda a: 1.0), (positives, lambda a: z * iou[a] ** eta)):
        for _, anchor, of_term in terms:
            for (a, c), value in of_term.items():
                gradient[a][c] += weight(anchor) * value
    return sum(loss for loss, _, _ in negatives) + z * weighted, gradient


def golden_loss(path, case, logits, form="labels"):
    options = {"eta": case["eta"].item(), "avg_factor": case["avg_factor"].item()}
    iou = case["iou"].to(logits.device)
    if "focal" in path.stem:
        labels = case["labels"].to(logits.device)
        if form == "dense":
            labels = one_hot(labels.clamp(min=0), logits.shape[-1] + 1)[:, :-1].masked_fill((labels < 0)[:, None], -1)
        options |= {"alpha": case["alpha"].item(), "gamma": case["gamma"].item()}
        return trl.iou_balanced_focal_loss(logits, labels, iou, **options)
    if "bce" in path.stem:
        targets = case["labels_binary"].to(logits.device)
        # As labels of one class: 0 is foreground, 1 background.
        targets = targets[:, None] if form == "dense" else torch.where(targets < 0, -1, 1 - targets)
        return trl.iou_balanced_bce_loss(logits, targets, iou, **options)
    labels = case["labels_bg0"].to(logits.device)
    if form == "dense":  # not a form of this loss; instead the background comes last
        logits, labels = logits.roll(-1, 1), torch.where(labels < 0, -1, (labels - 1) % logits.shape[1])
        return trl.iou_balanced_cross_entropy_loss(logits, labels, iou, **options)
    return trl.iou_balanced_cross_entropy_loss(logits, labels, iou, background=0, **options)


CLASSIFICATION = [path for path in golden("iou_balanced") if "smooth" not in path.stem]


@pytest.mark.parametrize("path", CLASSIFICATION, ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", ["labels", "dense"])
def test_golden(path, dtype, form, device):
    case = load(path)
    loss, gradient = gradient_of(lambda x: golden_loss(path, case, x, form), case["logits"].to(device, dtype))
    assert loss.item() == pytest.approx(case["loss"].item(), rel=1e-6)
    assert relative_error(gradient, case["grad_logits"]) < 1e-6


@pytest.mark.parametrize("path", golden("iou_balanced_smooth_l1"), ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_smooth_l1(path, dtype, device):
    case = load(path)
    options = {name: case[name].item() for name in ("lambda_", "beta", "avg_factor")}
    target, iou = case["target"].to(device, dtype), case["iou"].to(device)
    loss, gradient = gradient_of(
        trl.iou_balanced_smooth_l1_loss, case["pred"].to(device, dtype), target, iou, **options
    )
    assert loss.item() == pytest.approx(case["loss"].item(), rel=1e-6)
    assert relative_error(gradient, case["grad_pred"]) < 1e-6


@every_loss
@pytest.mark.parametrize("eta", [0.0, 1.5])
def test_literal_loops_in_every_form(kind, eta, batch):
    logits, labels, iou = batch
    rows, flat_labels, flat_iou = logits.flatten(0, 1), labels.flatten(), iou.flatten()
    is_positive = (labels >= 0) & (labels < NUM_CLASSES)
    if kind == "softmax":
        rows = torch.cat([rows, (torch.arange(40, device=rows.device) % 5 - 2)[:, None]], 1)
    total, expected = literal(kind, rows.tolist(), flat_labels.tolist(), flat_iou.tolist(), eta)
    expected = torch.tensor(expected, dtype=torch.float64)[:, :NUM_CLASSES].view(logits.shape)
    expected_loss = total / ((labels >= 0).sum() if kind == "softmax" else is_positive.sum()).item()
    forms = [(labels, iou), (labels.to(torch.int16), iou.float()), (labels, iou[is_positive])]
    if kind != "softmax":
        dense = to_dense(labels)
        forms += [(dense, iou), (dense.float(), iou[is_positive]), (dense.to(torch.int8), iou[is_positive])]
    for targets, values in forms:
        loss, gradient = gradient_of(LOSSES[kind], logits, targets, values, eta=eta)
        rough = 1e-6 if values.dtype == torch.float32 else 1e-12
        assert loss.item() == pytest.approx(expected_loss, rel=rough)
        assert relative_error(gradient * loss.new_tensor(total / expected_loss), expected) < rough
    for factor in (7, 7.0, torch.tensor(7, device=logits.device), torch.tensor(7.0, device=logits.device)):
        loss, gradient = gradient_of(LOSSES[kind], logits, labels, iou, eta=eta, avg_factor=factor)
        assert loss.item() == pytest.approx(total / 7, rel=1e-12)
        assert relative_error(gradient, expected / 7) < 1e-12


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_focal_parameters(alpha, gamma, batch):
    logits, labels, iou = batch
    total, expected = literal(
        "focal", logits.flatten(0, 1).tolist(), labels.flatten().tolist(), iou.flatten().tolist(), 1.5, alpha, gamma
    )
    loss, gradient = gradient_of(
        trl.iou_balanced_focal_loss, logits, labels, iou, alpha=alpha, gamma=gamma, avg_factor=1
    )
    assert loss.item() == pytest.approx(total, rel=1e-12)
    assert relative_error(gradient.flatten(0, 1), torch.tensor(expected, dtype=torch.float64)) < 1e-12


def test_dense_targets_may_have_several_positives_in_an_anchor(device):
    # Flat, [N] with one channel per anchor, says the same as [2, 3] with the IoU of each positive.
    logits = torch.randn(2, 3, dtype=torch.float64, device=device)
    targets = torch.tensor([[1, 0, 1], [-1, 1, 0]], device=device)
    iou = torch.tensor([0.9, 0.4, 0.6], dtype=torch.float64, device=device)
    loss, gradient = gradient_of(trl.iou_balanced_focal_loss, logits, targets, iou)
    flat_iou = torch.tensor([0.9, 0, 0.4, 0, 0.6, 0], dtype=torch.float64, device=device)
    for values in (iou, flat_iou):
        flat_loss, flat_gradient = gradient_of(trl.iou_balanced_focal_loss, logits.flatten(), targets.flatten(), values)
        assert flat_loss.item() == pytest.approx(loss.item(), rel=1e-14)
        assert relative_error(flat_gradient, gradient.flatten()) < 1e-14


def test_by_hand(device):
    # Logits 0, so p = 1/2 and every BCE term is ln 2, with slope -1/2 or 1/2. Positives with IoU 1 and 1/4, eta 1/2:
    # weights 1 and 1/2, Z = 2 ln 2 / (1.5 ln 2 + 1e-6) = 4/3; two negatives. Loss (2 + 2) ln 2 / 2.
    logits = torch.zeros(4, 1, dtype=torch.float64, device=device)
    labels = torch.tensor([0, 1, 0, 1], device=device)
    iou = torch.tensor([1, 0, 0.25, 0], dtype=torch.float64, device=device)
    loss, gradient = gradient_of(trl.iou_balanced_bce_loss, logits, labels, iou, eta=0.5)
    assert loss.item() == pytest.approx(2 * math.log(2), rel=1e-6)
    assert gradient[:, 0].tolist() == pytest.approx([-1 / 3, 1 / 4, -1 / 6, 1 / 4], rel=2e-6)
    # Focal, alpha 1/4, gamma 2: positives ln 2 / 16, negatives 3 ln 2 / 16: loss (2 + 6) ln 2 / 16 / 2.
    loss, _ = gradient_of(trl.iou_balanced_focal_loss, logits, labels, iou, eta=0.5)
    assert loss.item() == pytest.approx(math.log(2) / 4, rel=1e-4)
    # Softmax over two equal channels: ln 2 each, slopes 1/2; all four are not ignored. Loss (2 + 2) ln 2 / 4.
    pair = torch.zeros(4, 2, dtype=torch.float64, device=device)
    loss, gradient = gradient_of(trl.iou_balanced_cross_entropy_loss, pair, labels, iou, eta=0.5)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
    assert gradient[:, 0].tolist() == pytest.approx([-1 / 6, 1 / 8, -1 / 12, 1 / 8], rel=2e-6)
    # Smooth L1, beta 1: d = (2, 0.5, 0, -2) gives 1.5 + 0.125 + 0 + 1.5 = 3.125; IoU 1/4, lambda 1/2: half of it.
    pred = torch.tensor([[2, 0.5, 0, -2]], dtype=torch.float64, device=device)
    options = {"lambda_": 0.5, "loss_weight": 3.0}
    loss, gradient = gradient_of(trl.iou_balanced_smooth_l1_loss, pred, 0 * pred, iou[2:3], **options)
    assert loss.item() == pytest.approx(3 * 3.125 / 2)
    assert gradient[0].tolist() == pytest.approx([1.5, 0.75, 0, -1.5])


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_smooth_l1_against_torch(beta, device):
    pred, target = torch.randn(2, 12, 4, dtype=torch.float64, device=device)
    pred[0] = target[0]  # the kink of beta = 0
    iou = torch.rand(12, dtype=torch.float64, device=device)
    pred.requires_grad_(), target.requires_grad_()
    terms = smooth_l1_loss(pred, target, beta=beta, reduction="none").sum(1)
    expected = 2 * (iou**1.5 * terms).sum() / 12
    loss = trl.iou_balanced_smooth_l1_loss(pred, target, iou, beta=beta, loss_weight=2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for actual, wanted in zip(*(torch.autograd.grad(value, (pred, target)) for value in (loss, expected))):
        assert relative_error(actual, wanted) < 1e-12


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 4), st.floats(0.1, 10), st.sampled_from(sorted(LOSSES)))
def test_properties(seed, eta, factor, kind):
    """Weights change no sum: any eta gives the unweighted loss; the unit of IoU does not count; avg_factor divides."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(9, NUM_CLASSES, dtype=torch.float64, generator=generator)
    labels = torch.randint(-1, NUM_CLASSES + 1, (9,), generator=generator)
    iou = 0.2 + 0.8 * torch.rand(9, dtype=torch.float64, generator=generator)
    plain = LOSSES[kind](logits, labels, iou, eta=0.0, avg_factor=1.0)
    if kind == "bce":
        counts = (to_dense(labels) >= 0).double()
        dense = to_dense(labels).clamp(min=0).double()
        expected = binary_cross_entropy_with_logits(logits, dense, weight=counts, reduction="sum")
        assert plain.item() == pytest.approx(expected.item(), rel=1e-5)
    loss, gradient = gradient_of(LOSSES[kind], logits, labels, iou, eta=eta, avg_factor=factor)
    assert loss.item() * factor == pytest.approx(plain.item(), rel=1e-2, abs=1e-9)
    half, half_gradient = gradient_of(LOSSES[kind], logits, labels, iou / 2, eta=eta, avg_factor=factor)
    assert half.item() == pytest.approx(loss.item(), rel=1e-2, abs=1e-9)
    assert torch.allclose(half_gradient, gradient, rtol=1e-2, atol=1e-9)


def test_softmax_without_weights_is_cross_entropy(batch):
    logits, labels, iou = batch
    labels = labels.clamp(max=NUM_CLASSES - 1)
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-1)
    loss = trl.iou_balanced_cross_entropy_loss(logits, labels, iou.nan_to_num(0.5), eta=0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_any_negative_label_is_ignored_whatever_the_background(batch):
    logits, labels, iou = batch
    rows = torch.cat([logits, logits[..., :1]], -1)
    for background in (-1, NUM_CLASSES, -(NUM_CLASSES + 1), 0):
        of_ignored = [
            gradient_of(trl.iou_balanced_cross_entropy_loss, rows, torch.where(labels < 0, value, labels),
                        iou.nan_to_num(0.5), background=background)
            for value in (-1, -2, -100)
        ]  # fmt: skip
        for loss, gradient in of_ignored:
            assert loss == of_ignored[0][0]
            assert torch.equal(gradient, of_ignored[0][1])
            assert gradient[labels < 0].abs().max() == 0
    last = trl.iou_balanced_cross_entropy_loss(rows, labels, iou, background=NUM_CLASSES)
    assert last == trl.iou_balanced_cross_entropy_loss(rows, labels, iou)
    beyond = gradient_of(trl.iou_balanced_cross_entropy_loss, logits, labels, iou.nan_to_num(0.5))
    assert beyond[0].isnan()  # labels of NUM_CLASSES: there is no such channel
    assert beyond[1][labels == NUM_CLASSES].isnan().all()


@every_loss
@pytest.mark.parametrize(
    ("labels", "num_positives", "num_samples"),
    [([3] * 6, 0, 6), ([-1] * 6, 0, 0), ([], 0, 0), ([0, 1, 2], 3, 3)],
    ids=["no positives", "all ignored", "empty", "no negative anchors"],
)
def test_edge_cases(kind, labels, num_positives, num_samples, device):
    labels = torch.tensor(labels, dtype=torch.long, device=device)
    logits = torch.randn(len(labels), NUM_CLASSES, dtype=torch.float64, device=device)
    iou = torch.rand(len(labels), dtype=torch.float64, device=device)
    rows = logits
    if kind == "softmax":
        rows = torch.cat([logits, (torch.arange(len(labels), device=device) % 5 - 2)[:, None]], 1)
    total, expected = literal(kind, rows.tolist(), labels.tolist(), iou.tolist())
    expected = torch.tensor(expected, dtype=torch.float64).view(-1, rows.shape[1])[:, :NUM_CLASSES]
    divisor = max(1, num_samples if kind == "softmax" else num_positives)
    for values in (iou, iou[:num_positives]):
        loss, gradient = gradient_of(LOSSES[kind], logits, labels, values)
        assert loss.item() == pytest.approx(total / divisor, rel=1e-14, abs=1e-15)
        assert relative_error(gradient, expected / divisor) < 1e-12


def test_no_channels_and_no_boxes(device):
    logits = torch.zeros(5, 0, device=device)
    loss, gradient = gradient_of(
        trl.iou_balanced_focal_loss, logits, torch.zeros(5, dtype=torch.long, device=device), torch.rand(5).to(device)
    )
    assert loss == 0
    assert gradient.shape == (5, 0)
    pred = torch.zeros(0, 4, device=device)
    loss, gradient = gradient_of(trl.iou_balanced_smooth_l1_loss, pred, pred, pred[:, 0])
    assert loss == 0
    assert gradient.shape == (0, 4)


@every_loss
def test_iou_of_zero(kind, batch):
    logits, labels, iou = batch
    is_positive = (labels >= 0) & (labels < NUM_CLASSES)
    for value in (0.0, -1e-9):  # rounding may leave an IoU below 0
        loss, gradient = gradient_of(LOSSES[kind], logits, labels, iou.nan_to_num(0) * 0 + value)
        assert loss.isfinite()
        at_positives = gradient[is_positive] if kind == "softmax" else gradient[to_dense(labels) == 1]
        assert at_positives.abs().max() == 0


@every_loss
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(kind, dtype, batch):
    logits, labels, iou = batch
    rounded = logits.to(dtype)
    loss, gradient = gradient_of(LOSSES[kind], rounded, labels, iou)
    expected, expected_gradient = gradient_of(LOSSES[kind], rounded.double(), labels, iou)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative_error(gradient, expected_gradient) < TOLERANCE[dtype]
    target = torch.randn(12, 4, dtype=dtype, device=logits.device)
    arguments = target, torch.rand(12, device=logits.device)
    loss, gradient = gradient_of(trl.iou_balanced_smooth_l1_loss, rounded.flatten()[:48].view(12, 4), *arguments)
    assert gradient.dtype == dtype
    expected, expected_gradient = gradient_of(
        trl.iou_balanced_smooth_l1_loss, rounded.flatten()[:48].view(12, 4).double(), target.double(), arguments[1]
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative_error(gradient, expected_gradient) < TOLERANCE[dtype]


@every_loss
@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_logits(kind, dtype, device):
    values = torch.tensor([1e4, -1e4, torch.inf, -torch.inf, 0], dtype=dtype, device=device)
    logits = torch.stack([values, values.flip(0), values.roll(1)], -1)
    labels = torch.tensor([0, 0, 1, 2, 3], device=device)
    loss, gradient = gradient_of(LOSSES[kind], logits, labels, torch.rand(5, device=device) + 0.1, eta=0.0)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert loss > 1e3
    limit = min(torch.finfo(dtype).max, 1e30)
    clamped, clamped_gradient = gradient_of(
        LOSSES[kind], logits.clamp(-limit, limit), labels, torch.ones(5, device=device), eta=0.0
    )
    assert loss == clamped
    assert torch.equal(gradient, clamped_gradient)


@every_loss
def test_float16_scaled_for_mixed_precision(kind, batch):
    logits, labels, iou = batch
    leaf = logits.half().requires_grad_()
    LOSSES[kind](leaf, labels, iou, avg_factor=2.0**16).mul(2.0**16).backward()
    _, expected = gradient_of(LOSSES[kind], logits.half().double(), labels, iou, avg_factor=1)
    assert relative_error(leaf.grad, expected) < TOLERANCE[torch.float16]


@every_loss
def test_nan(kind, batch):
    logits, labels, iou = batch
    of_ignored = logits.clone()
    of_ignored[labels < 0] = torch.nan
    loss, gradient = gradient_of(LOSSES[kind], of_ignored, labels, iou)
    expected, expected_gradient = gradient_of(LOSSES[kind], logits, labels, iou)
    assert loss == expected
    assert torch.equal(gradient, expected_gradient)
    for anchors in (labels == NUM_CLASSES, labels == 0):
        poisoned = logits.masked_fill(anchors.unsqueeze(-1), torch.nan)
        loss, gradient = gradient_of(LOSSES[kind], poisoned, labels, iou)
        assert loss.isnan()
        assert gradient[anchors].isnan().all()
    assert LOSSES[kind](logits, labels, iou * torch.nan).isnan()


@every_loss
def test_strided_inputs(kind, batch):
    logits, labels, iou = batch
    expected, expected_gradient = gradient_of(LOSSES[kind], logits, labels, iou)
    strided = logits.transpose(1, 2).contiguous().transpose(1, 2)
    for other in (strided, logits.repeat(1, 1, 2)[..., :NUM_CLASSES]):
        assert not other.is_contiguous()
        loss, gradient = gradient_of(LOSSES[kind], other, labels.t().contiguous().t(), iou.t().contiguous().t())
        assert loss.item() == pytest.approx(expected.item(), rel=1e-14)
        assert relative_error(gradient, expected_gradient) < 1e-14


def test_reference_forward_differentiates_to_its_backward(batch):
    logits, labels, iou = batch
    upstream = torch.tensor(0.7, dtype=torch.float64, device=logits.device)
    for targets in (labels, to_dense(labels)):
        leaf = logits.clone().requires_grad_()
        loss, scale = reference.focal_forward(leaf, targets, iou, 1.5, (0.75, 0.25), 2.0, None)
        (expected,) = torch.autograd.grad(loss, leaf, upstream)
        actual = reference.focal_backward(logits, targets, iou, scale.detach(), upstream, 1.5, 2.0)
        assert relative_error(actual, expected) < 1e-12
    leaf = torch.cat([logits, logits[..., :1]], -1).requires_grad_()
    loss, scale = reference.cross_entropy_forward(leaf, labels, iou, 1.5, -1, None)
    (expected,) = torch.autograd.grad(loss, leaf, upstream)
    actual = reference.cross_entropy_backward(leaf.detach(), labels, iou, scale.detach(), upstream, 1.5, -1)
    assert relative_error(actual, expected) < 1e-12


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

"""IoU-balanced losses: the authors' vectors, literal loops over the formulas, cases worked out by hand."""

import math

import pytest
import torch
from cases import assert_close, golden, load
from hypothesis import given, settings, strategies as st
from iou_balanced_cases import LOSSES, NUM_CLASSES, every_loss, gradient_of, make_batch, to_dense
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot, smooth_l1_loss

import triton_rankloss as trl
from triton_rankloss.reference import iou_balanced as reference


@pytest.fixture
def batch(device):
    return make_batch(device)


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
    assert_close(loss, case["loss"], torch.float32)
    assert_close(gradient, case["grad_logits"], torch.float32)


@pytest.mark.parametrize("path", golden("iou_balanced_smooth_l1"), ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_smooth_l1(path, dtype, device):
    case = load(path)
    options = {name: case[name].item() for name in ("lambda_", "beta", "avg_factor")}
    target, iou = case["target"].to(device, dtype), case["iou"].to(device)
    loss, gradient = gradient_of(
        trl.iou_balanced_smooth_l1_loss, case["pred"].to(device, dtype), target, iou, **options
    )
    assert_close(loss, case["loss"], torch.float32)
    assert_close(gradient, case["grad_pred"], torch.float32)


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
    count = int((labels >= 0).sum() if kind == "softmax" else is_positive.sum())
    forms = [(labels, iou), (labels.to(torch.int16), iou.float()), (labels, iou[is_positive])]
    if kind != "softmax":
        dense = to_dense(labels)
        forms += [(dense, iou), (dense.float(), iou[is_positive]), (dense.to(torch.int8), iou[is_positive])]
    for targets, values in forms:
        loss, gradient = gradient_of(LOSSES[kind], logits, targets, values, eta=eta)
        assert_close(loss, total / count, values.dtype)
        assert_close(gradient, expected / count, values.dtype)
    for factor in (7, 7.0, torch.tensor(7, device=logits.device), torch.tensor(7.0, device=logits.device)):
        loss, gradient = gradient_of(LOSSES[kind], logits, labels, iou, eta=eta, avg_factor=factor)
        assert_close(loss, total / 7)
        assert_close(gradient, expected / 7)


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
    assert_close(loss, total)
    assert_close(gradient.flatten(0, 1), expected)


def test_dense_targets_may_have_several_positives_in_an_anchor(device):
    # Flat, [N] with one channel per anchor, says the same as [2, 3] with the IoU of each positive.
    logits = torch.randn(2, 3, dtype=torch.float64, device=device)
    targets = torch.tensor([[1, 0, 1], [-1, 1, 0]], device=device)
    iou = torch.tensor([0.9, 0.4, 0.6], dtype=torch.float64, device=device)
    loss, gradient = gradient_of(trl.iou_balanced_focal_loss, logits, targets, iou)
    flat_iou = torch.tensor([0.9, 0, 0.4, 0, 0.6, 0], dtype=torch.float64, device=device)
    for values in (iou, flat_iou):
        flat_loss, flat_gradient = gradient_of(trl.iou_balanced_focal_loss, logits.flatten(), targets.flatten(), values)
        assert_close(flat_loss, loss, times=0.01)
        assert_close(flat_gradient, gradient.flatten(), times=0.01)


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
    assert_close(loss, expected)
    for actual, wanted in zip(*(torch.autograd.grad(value, (pred, target)) for value in (loss, expected))):
        assert_close(actual, wanted)


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
    # Up to the 1e-6 in Z, which shows in single entries where terms cancel: relative to the largest.
    assert (half_gradient - gradient).abs().max() <= 1e-2 * gradient.abs().max()


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
@pytest.mark.parametrize("labels", [[3] * 6, [0, 1, 2]], ids=["no positives", "no negative anchors"])
def test_one_kind_of_anchors_alone(kind, labels, device):
    labels = torch.tensor(labels, device=device)
    logits = torch.randn(len(labels), NUM_CLASSES, dtype=torch.float64, device=device)
    iou = torch.rand(len(labels), dtype=torch.float64, device=device)
    rows = logits
    if kind == "softmax":
        rows = torch.cat([logits, (torch.arange(len(labels), device=device) % 5 - 2)[:, None]], 1)
    total, expected = literal(kind, rows.tolist(), labels.tolist(), iou.tolist())
    expected = torch.tensor(expected, dtype=torch.float64)[:, :NUM_CLASSES]
    is_positive = labels < NUM_CLASSES
    count = len(labels) if kind == "softmax" else max(1, int(is_positive.sum()))
    for values in (iou, iou[is_positive]):
        loss, gradient = gradient_of(LOSSES[kind], logits, labels, values)
        assert_close(loss, total / count, times=0.01)
        assert_close(gradient, expected / count)


@every_loss
def test_iou_of_zero(kind, batch):
    logits, labels, iou = batch
    is_positive = (labels >= 0) & (labels < NUM_CLASSES)
    for value in (0.0, -1e-9):  # rounding may leave an IoU below 0
        loss, gradient = gradient_of(LOSSES[kind], logits, labels, iou.nan_to_num(0) * 0 + value)
        assert loss.isfinite()
        at_positives = gradient[is_positive] if kind == "softmax" else gradient[to_dense(labels) == 1]
        assert at_positives.abs().max() == 0


@pytest.mark.parametrize("avg_factor", [None, 7.0])
def test_autograd_of_the_formulas(avg_factor, batch):
    logits, labels, iou = batch
    dense, is_positive = to_dense(labels), (labels >= 0) & (labels < NUM_CLASSES)
    num_positives = is_positive.sum().item()
    leaf = logits.clone().requires_grad_()

    def candidates():
        return leaf[dense > 0], leaf[dense == 0], iou[is_positive], 1.5

    rows, samples = torch.cat([logits, logits[..., :1]], -1).requires_grad_(), labels >= 0
    pred, target = torch.randn(2, 12, 4, dtype=torch.float64, device=logits.device)
    boxes, weights = pred.requires_grad_(), torch.rand(12, dtype=torch.float64, device=logits.device)
    cases = [
        (trl.iou_balanced_focal_loss, (leaf, labels, iou), num_positives,
         lambda divisor: reference.iou_balanced_focal_loss(*candidates(), 0.25, 2.0, divisor)),
        (trl.iou_balanced_bce_loss, (leaf, dense, iou), num_positives,
         lambda divisor: reference.iou_balanced_bce_loss(*candidates(), divisor)),
        (trl.iou_balanced_cross_entropy_loss, (rows, labels, iou), samples.sum().item(),
         lambda divisor: reference.iou_balanced_cross_entropy_loss(
             rows[samples], labels[samples], iou[samples], 1.5, NUM_CLASSES, divisor)),
        (trl.iou_balanced_smooth_l1_loss, (boxes, target, weights), 12,
         lambda divisor: reference.iou_balanced_smooth_l1_loss(boxes, target, weights, 1.5, 1.0, 1.0, divisor)),
    ]  # fmt: skip
    for loss, arguments, count, formula in cases:
        value, expected = 0.7 * loss(*arguments, avg_factor=avg_factor), 0.7 * formula(avg_factor or count)
        assert_close(value, expected)
        (gradient,), (expected_gradient,) = (torch.autograd.grad(x, arguments[0]) for x in (value, expected))
        assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_smooth_l1_of_nan(beta, device):
    pred = torch.tensor([[torch.nan, 1.0], [2.0, 3.0]], device=device)
    target, iou = torch.zeros_like(pred), torch.ones(2, device=device)
    loss, gradient = gradient_of(trl.iou_balanced_smooth_l1_loss, pred, target, iou, beta=beta)
    assert loss.isnan()
    assert gradient.isnan().tolist() == [[True, False], [False, False]]


@every_loss
@pytest.mark.parametrize("iou", [[0.0, 0.0], [0.0, 1e-20]], ids=str)
def test_weights_that_have_no_room_in_float32(kind, iou, device):
    """A positive of cost 1e30 and weight 0 makes Z 1e36, and with a small avg_factor more than float32 can hold."""
    logits = torch.tensor([[-torch.inf, 0, 1], [0, 30, 1], [0, 1, 2]], device=device)
    labels = torch.tensor([0, 1, 3], device=device)
    arguments = labels, torch.tensor([*iou, torch.nan], device=device)
    _, gradient = gradient_of(LOSSES[kind], logits, *arguments, avg_factor=1e-4)
    _, expected = gradient_of(LOSSES[kind], logits.double(), *arguments, avg_factor=1e-4)
    assert gradient.isfinite().all()
    assert_close(gradient, expected)


def test_bad_shapes(device):
    rows, labels, iou = torch.zeros(4, 3, device=device), torch.zeros(4, device=device).long(), torch.ones(4).to(device)
    with pytest.raises(ValueError, match=r"logits must have shape \[..., K\], K at least 1; got \(4, 0\)"):
        trl.iou_balanced_cross_entropy_loss(rows[:, :0], labels, iou)
    with pytest.raises(ValueError, match=r"pred must have shape \[P, 4\]; got \(3,\)"):
        trl.iou_balanced_smooth_l1_loss(rows[0], rows[0], iou)

"""Harmonic detection loss: the written formula, one positive at a time, and cases worked out by hand."""

import math

import pytest
import torch
from cases import DTYPES, assert_close, assert_equal
from torch.nn.functional import cross_entropy, one_hot

import triton_rankloss as trl
from triton_rankloss.reference import harmonic as reference
from triton_rankloss.targets import positive_positions

NUM_CLASSES = 3
kinds = pytest.mark.parametrize("classification", ["bce", "focal", "softmax"])
FACTORS = {"bce": (1.0, 1.0, 0.0), "focal": (0.75, 0.25, 2.0)}  # weights of negatives and positives, gamma


def to_dense(labels):
    dense = one_hot(labels.clamp(min=0), NUM_CLASSES + 1)[..., :NUM_CLASSES]
    return dense.masked_fill((labels < 0).unsqueeze(-1), -1)


def boxes(num):
    corner = 6 * torch.rand(num, 2)
    return torch.cat([corner, corner + 0.5 + 5 * torch.rand(num, 2)], 1).double()


class Batch:
    """Logits [2, 10, 3] in float64, labels of them (of a softmax: the last channel is background), boxes and deltas."""

    def __init__(self, classification, device):
        self.logits = 2 * torch.randn(2, 10, NUM_CLASSES, dtype=torch.float64, device=device)
        last = NUM_CLASSES - (classification == "softmax")
        self.labels = torch.randint(-1, last + 1, (2, 10), device=device)
        self.is_positive = (self.labels >= 0) & (self.labels < last)
        num = int(self.is_positive.sum())
        self.pred, self.target = boxes(num).to(device), boxes(num).to(device)
        self.pred[0] = self.target[0]
        self.deltas, self.target_deltas = torch.randn(2, num, 5, dtype=torch.float64, device=device)
        self.classification = classification
        self.num_samples = int((self.labels >= 0).sum()) if classification == "softmax" else num

    def gradients(self, loss, *, deltas=True, **options):
        """(loss, gradients of logits, predicted boxes and, if given, deltas)."""
        leaves = [t.clone().requires_grad_() for t in (self.logits, self.pred, self.deltas)[: 2 + deltas]]
        both = {"pred_deltas": leaves[2], "target_deltas": self.target_deltas} if deltas else {}
        value = loss(
            leaves[0], self.labels, leaves[1], self.target, classification=self.classification, **both, **options
        )
        return value.detach(), *torch.autograd.grad(value, leaves)


def written(
    logits, labels, pred, target, *, pred_deltas=None, target_deltas=None, classification="bce", beta=1.0,
    iou_weight=1.5, iou_gamma=0.8, detach_factors=False, task_contrastive_weight=0.0, avg_factor=1.0, factors=None,
):  # fmt: skip
    """The formula, one anchor and one channel at a time; differentiable."""
    total, i = 0, 0
    for row, label in zip(logits.flatten(0, 1), labels.flatten().tolist()):
        if label < 0:
            continue
        if classification == "softmax":
            c = torch.log(torch.exp(row).sum()) - row[label]
            probability = torch.exp(row) / torch.exp(row).sum()
            entropy = -(probability * torch.log(probability)).sum()
            is_positive = label < NUM_CLASSES - 1
            total = total if is_positive else total + c
        else:
            negative, positive, gamma = factors or FACTORS[classification]
            probability = 1 / (1 + torch.exp(-row))
            entropy = -(probability * probability.log() + (1 - probability) * (1 - probability).log()).sum()
            is_positive = label < NUM_CLASSES
            for channel, p in enumerate(probability):
                if channel == label:
                    c = -positive * (1 - p) ** gamma * torch.log(p)
                else:
                    total = total - negative * p**gamma * torch.log(1 - p)
        if not is_positive:
            continue
        a, b = pred[i], target[i]
        low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
        intersection = (high - low).prod() if (high > low).all() else (high - low).sum() * 0
        iou = intersection / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - intersection + 1e-7)
        loc = iou_weight * (1 + iou) ** iou_gamma * (1 - iou)
        if pred_deltas is not None:
            for d in pred_deltas[i] - target_deltas[i]:
                loc = loc + (d**2 / (2 * beta) if d.abs() < beta else d.abs() - beta / 2)
        of_c, of_loc = 1 + torch.exp(-loc), 1 + torch.exp(-c)
        if detach_factors:
            of_c, of_loc = of_c.detach(), of_loc.detach()
        excess = torch.relu((probability[label] - iou).abs() - 0.2)
        total = total + of_c * c + of_loc * loc + task_contrastive_weight * excess / (1 + torch.exp(entropy))
        i += 1
    return total / avg_factor


@kinds
@pytest.mark.parametrize(
    ("deltas", "options"),
    [
        (True, {}),
        (False, {}),
        (True, {"detach_factors": True}),
        (True, {"task_contrastive_weight": 0.7}),
        (False, {"task_contrastive_weight": 2.0, "detach_factors": True, "iou_weight": 0.5, "iou_gamma": 0.0}),
        (True, {"beta": 0.3, "iou_weight": 0.0}),
    ],
    ids=str,
)
def test_formula(classification, deltas, options, device):
    batch = Batch(classification, device)
    expected = batch.gradients(written, deltas=deltas, avg_factor=batch.num_samples, **options)
    actual = batch.gradients(trl.harmonic_detection_loss, deltas=deltas, **options)
    for value, wanted in zip(actual, expected):
        assert_close(value, wanted, times=10)
    for factor in (7, torch.tensor(7.0, device=device)):
        actual = batch.gradients(trl.harmonic_detection_loss, deltas=deltas, avg_factor=factor, **options)
        for value, wanted in zip(actual, expected):
            assert_close(value * 7, wanted * batch.num_samples, times=10)


def test_focal_parameters_and_forms_of_targets(device):
    batch = Batch("focal", device)
    options = {"focal_alpha": 0.4, "focal_gamma": 1.5}
    expected = batch.gradients(written, factors=(0.6, 0.4, 1.5), avg_factor=batch.num_samples)
    for form in (batch.labels, batch.labels.to(torch.int8), to_dense(batch.labels), to_dense(batch.labels).float()):
        batch.labels = form
        for value, wanted in zip(batch.gradients(trl.harmonic_detection_loss, **options), expected):
            assert_close(value, wanted, times=10)


def test_several_positives_in_an_anchor(device):
    # Flat, [N] with one channel per anchor, says the same as [2, 3].
    logits = torch.randn(2, 3, dtype=torch.float64, device=device)
    targets = torch.tensor([[1, 0, 1], [-1, 1, 0]], device=device)
    pred, target = boxes(3).to(device), boxes(3).to(device)
    loss = trl.harmonic_detection_loss(logits, targets, pred, target)
    flat = trl.harmonic_detection_loss(logits.flatten(), targets.flatten(), pred, target)
    assert_close(flat, loss, times=0.01)


def test_by_hand(device):
    # Logits 0: every BCE is ln 2. One positive with IoU 0: l = 1.5 (1 + 0)^0.8 = 1.5. One negative. avg_factor 1.
    # loss = (1 + e^-1.5) ln 2 + (1 + 1/2) 1.5 + ln 2; dh/dc = 1 + e^-1.5 - 1.5 / 2, dc/dx = -1/2; negative: 1/2.
    logits = torch.zeros(2, dtype=torch.float64, device=device, requires_grad=True)
    box = torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64, device=device)
    loss = trl.harmonic_detection_loss(logits, torch.tensor([1, 0], device=device), box, box + 5)
    loss.backward()
    assert loss.item() == pytest.approx((2 + math.exp(-1.5)) * math.log(2) + 2.25)
    assert logits.grad.tolist() == pytest.approx([-(0.25 + math.exp(-1.5)) / 2, 0.5])
    # A perfect box, l = 0: 2 c = 2 ln 2; with deltas that are 1 apart in one coordinate, beta 1: l = 1/2.
    loss = trl.harmonic_detection_loss(logits, torch.tensor([1, 0], device=device), box, box, eps=0.0)
    assert loss.item() == pytest.approx(3 * math.log(2))
    deltas = torch.tensor([[1.0, 0]], dtype=torch.float64, device=device)
    loss = trl.harmonic_detection_loss(
        logits, torch.tensor([1, 0], device=device), box, box, pred_deltas=deltas, target_deltas=0 * deltas, eps=0.0
    )
    assert loss.item() == pytest.approx((2 + math.exp(-0.5)) * math.log(2) + 0.75)
    # Two equal channels of a softmax, background first: also ln 2 each; two samples are not ignored.
    pair, labels = torch.zeros(3, 2, dtype=torch.float64, device=device), torch.tensor([1, 0, -1], device=device)
    options = {"classification": "softmax", "background": 0}
    loss = trl.harmonic_detection_loss(pair, labels, box, box + 5, **options)
    assert loss.item() == pytest.approx(((2 + math.exp(-1.5)) * math.log(2) + 2.25) / 2)


@kinds
def test_without_positives(classification, device):
    background = NUM_CLASSES - (classification == "softmax")
    labels = torch.full((2, 5), background, device=device)
    logits = torch.randn(2, 5, NUM_CLASSES, dtype=torch.float64, device=device, requires_grad=True)
    none = torch.zeros(0, 4, dtype=torch.float64, device=device)
    avg_factor = 10 if classification == "softmax" else 1
    expected = written(logits, labels, none, none, classification=classification, avg_factor=avg_factor)
    loss = trl.harmonic_detection_loss(logits, labels, none, none, classification=classification)
    assert_close(loss, expected)
    assert_close(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_power_below_1_of_a_probability_that_underflows(dtype, device):
    """It has no finite derivative."""
    values = torch.tensor([1e4, -1e4, torch.inf, -torch.inf, 0], dtype=dtype, device=device)
    logits = torch.stack([values, values.flip(0), values.roll(1)], -1).requires_grad_()
    labels = torch.tensor([0, 0, 1, 2, 3], device=device)
    options = {"classification": "focal", "focal_gamma": 0.5}
    loss = trl.harmonic_detection_loss(logits, labels, boxes(4).to(device), boxes(4).to(device), **options)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_the_gradient_of_both_terms_once(classification, dtype, device):
    batch = Batch(classification, device)
    batch.logits = batch.logits.to(dtype)
    _, gradient, *_ = batch.gradients(trl.harmonic_detection_loss, task_contrastive_weight=2.0)
    batch.logits = batch.logits.float()
    _, expected, *_ = batch.gradients(trl.harmonic_detection_loss, task_contrastive_weight=2.0)
    truncated = (expected.view(torch.int32) & -(2**16)).view(torch.float32).to(torch.bfloat16)
    if dtype != torch.bfloat16 or not gradient.equal(truncated):  # as Triton's interpreter rounds
        assert_equal(gradient, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boxes_in_half_precision_have_the_gradient_of_both_terms_rounded_once(dtype, device):
    pred = torch.rand(16, 4, device=device).cumsum(1).to(dtype)
    target = (pred + 0.2 * torch.rand(16, 4, device=device)).to(dtype)
    logits, labels = torch.randn(16, 1, device=device), torch.zeros(16, dtype=torch.long, device=device)
    gradients = []
    for boxes in (pred, pred.float()):
        leaf = boxes.requires_grad_()
        options = {"task_contrastive_weight": 2.0, "task_contrastive_margin": 0.0}
        trl.harmonic_detection_loss(logits, labels, leaf, target, **options).backward()
        gradients.append(leaf.grad)
    assert_equal(gradients[0], gradients[1].to(dtype))


def test_softmax_label_beyond_the_last_channel(device):
    batch = Batch("softmax", device)
    batch.labels[batch.is_positive] = NUM_CLASSES
    loss, gradient, *_ = batch.gradients(trl.harmonic_detection_loss)
    assert loss.isnan()
    assert gradient[batch.is_positive].isnan().all()
    assert gradient[~batch.is_positive].isfinite().all()


@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_the_loss_is_that_of_the_reference(classification, device):
    batch = Batch(classification, device)
    background = NUM_CLASSES - 1
    positions = positive_positions(batch.logits, batch.labels, background if classification == "softmax" else None)
    avg_factor = torch.tensor(float(batch.num_samples), dtype=torch.float64, device=device)

    def formula(logits, labels, pred, target, *, classification, pred_deltas, target_deltas):
        if classification == "softmax":
            rows = logits.flatten(0, 1)
            positives, negatives = rows[positions // NUM_CLASSES], rows[labels.flatten() == background]
            c = cross_entropy(positives, positions % NUM_CLASSES, reduction="none")
            c_negatives = -negatives.log_softmax(1)[:, background]
        else:
            positives, negatives = logits.take(positions), logits[to_dense(labels) == 0]
            c, c_negatives = 0.25 * reference.focal(positives, 2.0), 0.75 * reference.focal(-negatives, 2.0)
        loc = reference.localization_loss(pred, target, pred_deltas, target_deltas, 1.0, 1.5, 0.8, 1e-7)
        return reference.harmonic_detection_loss(c, c_negatives, loc, avg_factor)

    for value, wanted in zip(batch.gradients(trl.harmonic_detection_loss), batch.gradients(formula)):
        assert_close(value, wanted)


LOGITS, LABELS, BOXES, DELTAS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), torch.ones(4, 4), torch.ones(4, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((LOGITS, LABELS, BOXES[:3], BOXES[:3]), {}, ValueError, "pred_boxes must hold one box for each of the 4 .* 3"),
        ((LOGITS, LABELS, BOXES[0], BOXES[0]), {}, ValueError, r"pred_boxes must have shape \[P, 4\]; got \(4,\)"),
        ((LOGITS, LABELS, BOXES, BOXES), {"pred_deltas": DELTAS}, ValueError, "target_deltas must be given too"),
        ((LOGITS, LABELS, BOXES, BOXES), {"target_deltas": DELTAS}, ValueError, "pred_deltas must be given too"),
        (
            (LOGITS, LABELS, BOXES, BOXES),
            {"pred_deltas": DELTAS[:3], "target_deltas": DELTAS},
            ValueError,
            r"pred_deltas must have shape \(4, D\); got \(3, 5\)",
        ),
        (
            (LOGITS, LABELS, BOXES, BOXES),
            {"pred_deltas": DELTAS, "target_deltas": BOXES},
            ValueError,
            r"target_deltas must have the shape of pred_deltas, \(4, 5\); got \(4, 4\)",
        ),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        trl.harmonic_detection_loss(*arguments, **options)

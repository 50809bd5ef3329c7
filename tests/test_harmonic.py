"""Harmonic loss, harmonic IoU loss and task-contrastive loss: literal formulas, autograd of them, hand-computed cases.

The harmonic IoU loss shares the tests of the box losses; only what is its own is here.
"""

import math

import pytest
import torch
from cases import assert_close, assert_equal
from hypothesis import given, settings, strategies as st
from torch.nn.functional import one_hot

import triton_rankloss as trl
from triton_rankloss.reference import harmonic as reference
from triton_rankloss.targets import positive_positions

NUM_CLASSES = 3
activations = pytest.mark.parametrize("activation", ["sigmoid", "softmax"])


def gradients_of(loss, tensors, upstream=None, **options):
    """(detached loss, gradients of the `tensors`, which come first among the arguments of `loss`)."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = loss(*leaves, **options)
    upstream = torch.ones_like(value) if upstream is None else upstream.to(value.dtype)
    return value.detach(), *torch.autograd.grad(value, leaves, upstream)


def written_harmonic(c, loc, detach_factors):
    of_c, of_loc = 1 + torch.exp(-loc), 1 + torch.exp(-c)
    if detach_factors:
        of_c, of_loc = of_c.detach(), of_loc.detach()
    return of_c * c + of_loc * loc


@pytest.mark.parametrize("detach_factors", [False, True])
def test_harmonic_loss(detach_factors, device):
    c, loc = 3 * torch.rand(2, 40, dtype=torch.float64, device=device)
    upstream = torch.randn(40, dtype=torch.float64, device=device)
    expected = gradients_of(written_harmonic, (c, loc), upstream, detach_factors=detach_factors)
    actual = gradients_of(trl.harmonic_loss, (c, loc), upstream, detach_factors=detach_factors)
    for value, wanted in zip(actual, expected):
        assert_close(value, wanted, times=0.01)
    literal = [(1 + math.exp(-b)) * a + (1 + math.exp(-a)) * b for a, b in zip(c.tolist(), loc.tolist())]
    assert_close(actual[0], literal, times=0.01, each=True)
    grid, *_ = gradients_of(trl.harmonic_loss, (c.view(8, 5).t(), loc.view(8, 5).t()))
    assert torch.equal(grid.t().flatten(), actual[0])


def test_harmonic_loss_by_hand(device):
    # c = 0, l = ln 2: (1 + 1/2) 0 + (1 + 1) ln 2. dh/dc = 1 + 1/2 - ln 2, dh/dl = 2 - 0; detached 3/2 and 2.
    # c = l = 0: 0, with slopes 2 and 2. c = 1, l = 2: (1 + e^-2) + 2 (1 + e^-1); dh/dc = 1 + e^-2 - 2 / e.
    c = torch.tensor([0, 0, 1], dtype=torch.float64, device=device)
    loc = torch.tensor([math.log(2), 0, 2], dtype=torch.float64, device=device)
    value, of_c, of_loc = gradients_of(trl.harmonic_loss, (c, loc))
    assert value.tolist() == pytest.approx([2 * math.log(2), 0, 1 + math.exp(-2) + 2 * (1 + math.exp(-1))])
    assert of_c.tolist() == pytest.approx([1.5 - math.log(2), 2, 1 + math.exp(-2) - 2 * math.exp(-1)])
    assert of_loc.tolist() == pytest.approx([2, 2, 1 + math.exp(-1) - math.exp(-2)])
    _, of_c, of_loc = gradients_of(trl.harmonic_loss, (c[:1], loc[:1]), detach_factors=True)
    assert (of_c.item(), of_loc.item()) == pytest.approx((1.5, 2))


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 30), st.floats(0, 30))
def test_harmonic_loss_properties(c, loc):
    """Symmetric, between c + l and 2 (c + l); detaching changes the gradient and not the value."""
    pair = torch.tensor([[c], [loc]], dtype=torch.float64)
    value = trl.harmonic_loss(*pair).item()
    assert_close(trl.harmonic_loss(pair[1], pair[0]), [value], times=0.01)
    assert c + loc - 1e-12 <= value <= 2 * (c + loc) + 1e-12
    assert trl.harmonic_loss(*pair, detach_factors=True).item() == value


def test_harmonic_loss_does_not_overflow(device):
    # For l = 1e30, exp(-l) = 0.
    c, loc = torch.ones(1, device=device), torch.full((1,), 1e30, device=device)
    value, of_c, of_loc = gradients_of(trl.harmonic_loss, (c, loc))
    assert_close(value, [(1 + math.exp(-1)) * 1e30])
    assert_close(of_c, [1 - 1e30 * math.exp(-1)])
    assert_close(of_loc, [1 + math.exp(-1)])


def test_harmonic_iou_loss(device):
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1]], dtype=torch.float64, device=device)  # IoU = 1/2
    for gamma in (0.0, 0.8, 1.0):
        loss = trl.harmonic_iou_loss(boxes[0], boxes[1], gamma=gamma, eps=0.0)
        assert loss.item() == pytest.approx(1.5**gamma * 0.5)
    assert trl.harmonic_iou_loss(boxes[0], boxes[1], gamma=0.0) == trl.box_iou_loss(boxes[0], boxes[1])
    # dHIoU/dIoU = g (1 + u)^(g-1) (1 - u) - (1 + u)^g; dIoU/dx2 of (0, 0, 2, 1) inside (0, 0, 2, 2): I = 2, U = 4, the
    # ends at x = 2 tie: dI/dx2 = 1/2, d|b|/dx2 = 1, dU = 1/2, dIoU = (1/2 - 1/2 1/2) / 4 = 1/16.
    _, gradient = gradients_of(lambda b: trl.harmonic_iou_loss(b, boxes[0], gamma=0.5, eps=0.0), (boxes[1],))
    assert gradient[2].item() == pytest.approx((0.5 * 1.5**-0.5 * 0.5 - 1.5**0.5) / 16)


@pytest.fixture
def batch(device):
    """Logits [2, 12, 3] in float64, labels [2, 12] of which 2 is background to a softmax, and IoU [2, 12]."""
    logits = 3 * torch.randn(2, 12, NUM_CLASSES, dtype=torch.float64, device=device)
    labels = torch.randint(-1, NUM_CLASSES + 1, (2, 12), device=device)
    return logits, labels, torch.rand(2, 12, dtype=torch.float64, device=device)


def to_dense(labels):
    dense = one_hot(labels.clamp(min=0), NUM_CLASSES + 1)[..., :NUM_CLASSES]
    return dense.masked_fill((labels < 0).unsqueeze(-1), -1)


def for_softmax(labels):
    return labels.clamp(max=NUM_CLASSES - 1)


def written_task_contrastive(logits, labels, iou, margin, activation):
    """Loss of every positive, from the row of its anchor, one at a time; differentiable."""
    losses = []
    for row, label, u in zip(logits.flatten(0, 1), labels.flatten().tolist(), iou.flatten()):
        if label < 0 or label >= NUM_CLASSES - (activation == "softmax"):
            continue
        if activation == "softmax":
            p = torch.exp(row) / torch.exp(row).sum()
            entropy = -sum(q * torch.log(q) for q in p)
        else:
            p = 1 / (1 + torch.exp(-row))
            entropy = -sum(q * torch.log(q) + (1 - q) * torch.log(1 - q) for q in p)
        losses.append(torch.relu((p[label] - u).abs() - margin) / (1 + torch.exp(entropy)))
    return torch.stack(losses)


@activations
@pytest.mark.parametrize("margin", [0.0, 0.2, 1.0])
def test_task_contrastive_loss(margin, activation, batch):
    logits, labels, iou = batch
    targets = for_softmax(labels) if activation == "softmax" else labels
    is_positive = (labels >= 0) & (labels < NUM_CLASSES - (activation == "softmax"))
    options = {"margin": margin, "activation": activation}
    upstream = torch.randn(int(is_positive.sum()), dtype=torch.float64, device=logits.device)
    expected, of_logits, of_iou = gradients_of(
        lambda x, u: written_task_contrastive(x, labels, u, margin, activation), (logits, iou), upstream
    )
    forms = [(targets, iou), (targets.to(torch.int16), iou[is_positive])]
    if activation == "sigmoid":
        forms += [(to_dense(labels), iou), (to_dense(labels).float(), iou[is_positive])]
    for form, values in forms:
        loss, gradient, iou_gradient = gradients_of(
            lambda x, u, form=form: trl.task_contrastive_loss(x, form, u, **options), (logits, values), upstream
        )
        assert_close(loss, expected)
        assert_close(gradient, of_logits)
        assert_close(iou_gradient, of_iou if values is iou else of_iou[is_positive])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_iou_of_an_anchor_with_several_positives_has_its_gradient_rounded_once(dtype, device):
    logits, targets = torch.randn(2, 40, device=device), torch.ones(2, 40, device=device)
    values, gradients = torch.rand(2, device=device).to(dtype), []
    for iou in (values, values.float()):
        leaf = iou.requires_grad_()
        trl.task_contrastive_loss(logits, targets, leaf, margin=0.0, reduction="sum").backward()
        gradients.append(leaf.grad)
    assert_equal(gradients[0], gradients[1].to(dtype))


def test_task_contrastive_loss_by_hand(device):
    # One channel, logit 0: p = 1/2, H = ln 2, exp(H) = 2. IoU 1: (1/2 - 0.2) / 3 = 0.1; IoU 0.4: within the margin.
    # dt/dx = w sign(p - u) p (1 - p) - r w (1 - w) dH/dx, with dH/dx = 0 at 0: -1/3 1/4. dt/du = 1/3.
    logits = torch.zeros(3, dtype=torch.float64, device=device)
    targets = torch.tensor([1, 1, 0], device=device)
    iou = torch.tensor([1, 0.4], dtype=torch.float64, device=device)
    loss, of_logits, of_iou = gradients_of(lambda x, u: trl.task_contrastive_loss(x, targets, u), (logits, iou))
    assert loss.tolist() == pytest.approx([0.1, 0])
    assert of_logits.tolist() == pytest.approx([-1 / 12, 0, 0])
    assert of_iou.tolist() == pytest.approx([1 / 3, 0])
    # Softmax over two channels with equal logits is the same distribution.
    pair, labels = torch.zeros(2, 2, dtype=torch.float64, device=device), torch.tensor([0, 0], device=device)
    assert trl.task_contrastive_loss(pair, labels, iou, activation="softmax").tolist() == pytest.approx([0.1, 0])
    # The background first: label 1 is the positive.
    loss = trl.task_contrastive_loss(pair, 1 - labels, iou, activation="softmax", background=0, reduction="sum")
    assert loss.item() == pytest.approx(0.1)
    # Two positives in one anchor share its entropy, 2 ln 2: 0.3 / 5 each.
    both = trl.task_contrastive_loss(pair[:1], torch.ones(1, 2, device=device), torch.ones(2, device=device))
    assert both.tolist() == pytest.approx([0.06, 0.06])


@pytest.mark.parametrize("shift", [1000, 60000])
def test_a_shift_of_all_logits_changes_no_softmax(shift, device):
    """In float32; the logits are multiples of 1/64, so that adding the shift is exact."""
    logits = torch.randint(-128, 128, (6, 5), device=device) / 64
    labels, iou = torch.tensor([0, 1, 2, 3, 0, 1], device=device), torch.linspace(0, 1, 6, device=device)

    def loss(x):
        return trl.task_contrastive_loss(x, labels, iou, activation="softmax")

    for actual, wanted in zip(gradients_of(loss, (logits + shift,)), gradients_of(loss, (logits,))):
        assert_close(actual, wanted)


def test_softmax_of_equal_infinities(device):
    # p = 1/4 each, H = ln 4: |1/4 - 1| - 0.2 = 0.55, over 1 + 4.
    for value in (torch.inf, -torch.inf):
        logits = torch.full((1, 4), value, device=device)
        loss = trl.task_contrastive_loss(
            logits, torch.tensor([0]).to(device), torch.ones(1).to(device), activation="softmax"
        )
        assert_close(loss, [0.11])


@activations
def test_task_contrastive_loss_is_that_of_the_reference(activation, batch):
    logits, labels, iou = batch
    background = -1 if activation == "softmax" else None
    targets = labels if background is None else for_softmax(labels)
    positions = positive_positions(logits, targets, background)
    anchors, channels = positions // NUM_CLASSES, positions % NUM_CLASSES
    upstream = torch.rand(positions.numel(), dtype=torch.float64, device=logits.device)

    def formula(x, u):
        rows, iou = x.flatten(0, 1)[anchors], u.flatten()[anchors]
        return reference.task_contrastive_loss(rows, channels, iou, 0.2, activation)

    expected = gradients_of(formula, (logits, iou), upstream)
    actual = gradients_of(
        lambda x, u: trl.task_contrastive_loss(x, targets, u, activation=activation), (logits, iou), upstream
    )
    for value, wanted in zip(actual, expected):
        assert_close(value, wanted)

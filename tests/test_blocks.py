"""Losses that take every logit once, at blocks so small that there are background blocks, others, and a last one that
is not whole; against the written formulas in float64, differentiated by autograd.

Without Triton's interpreter these would only repeat the other tests.
"""

import math
from functools import partial
from importlib import import_module

import pytest
import torch
from cases import INTERPRETED, assert_close, assert_equal
from torch.nn.functional import logsigmoid, one_hot

import triton_rankloss as rankloss

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="needs the kernels on the CPU: TRITON_INTERPRET=1")
NUM_CLASSES, NUM_ANCHORS = 3, 67  # 201 logits of an image: no multiple of any block
NEG_LAMBDA = 0.1 / math.log(3.5)


@pytest.fixture(autouse=True)
def small_blocks_and_poisoned_buffers(monkeypatch):
    blocks = import_module("triton_rankloss.kernels.blocks")
    monkeypatch.setattr("triton_rankloss.targets.BACKGROUND_BLOCK", 32)
    for name, value in {"BLOCK": 32, "PART": 8, "BLOCKS_AT_ONCE": 2, "MAX_PROGRAMS": 4}.items():
        monkeypatch.setattr(blocks, name, value)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def batch():
    """Logits [2, A, C], labels [2, A] with few positives and ignored anchors, IoU [P] of the positives."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(2, NUM_ANCHORS, NUM_CLASSES, dtype=torch.float64) - 2
    labels = torch.full((2, NUM_ANCHORS), NUM_CLASSES)
    labels[0, 5], labels[0, 6], labels[0, 40], labels[1, 30], labels[1, 66], labels[1, 12] = 0, 2, 1, 2, 0, -1
    return logits, labels, torch.rand(5, dtype=torch.float64)


def to_dense(labels):
    dense = one_hot(labels.clamp(min=0), NUM_CLASSES + 1)[..., :NUM_CLASSES]
    return dense.masked_fill((labels < 0).unsqueeze(-1), -1)


def dr(logits, dense):
    p = logits.sigmoid()
    positives, negatives = p[dense > 0], p[dense == 0]
    mean_positive = ((-positives).softmax(0) * positives).sum() if len(positives) > 0 else 1
    mean_negative = ((negatives / NEG_LAMBDA).softmax(0) * negatives).sum()
    return 4 / 6 * (6 * (mean_negative - mean_positive + 0.5)).exp().log1p()


def focal(logits, dense, iou, negative=0.75, positive=0.25, gamma=2.0):
    x, y = logits[dense > 0], logits[dense == 0]
    of_positives = -positive * (-x).sigmoid() ** gamma * logsigmoid(x)
    of_negatives = -negative * y.sigmoid() ** gamma * logsigmoid(-y)
    weighted = iou**1.5 * of_positives
    balance = (of_positives.sum() / (weighted.sum() + 1e-6)).detach()
    return (of_negatives.sum() + balance * weighted.sum()) / len(x)


def detection(logits, dense, boxes, task_weight):
    logits = logits.reshape(dense.shape)
    x, y = logits[dense > 0], logits[dense == 0]
    c = -0.25 * (-x).sigmoid() ** 2 * logsigmoid(x)
    iou = rankloss.box_iou_loss(boxes, boxes + 0.3).neg() + 1
    loc = 1.5 * (1 + iou) ** 0.8 * (1 - iou)
    harmonic = (1 + (-loc).exp()) * c + (1 + (-c).exp()) * loc
    p = logits.sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum(-1, keepdim=True).expand_as(p)[dense > 0]
    terms = ((x.sigmoid() - iou).abs() - 0.2).relu() / (1 + entropy.exp())
    negatives = (-0.75 * y.sigmoid() ** 2 * logsigmoid(-y)).sum()
    return (harmonic.sum() + negatives + task_weight * terms.sum()) / len(x)


def assert_same_loss(loss, formula, logits, times=1.0):
    leaf = logits.clone().requires_grad_()
    value, expected = loss(leaf), formula(leaf)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(v, leaf, retain_graph=True) for v in (value, expected))
    assert_close(value, expected, times=times)
    assert_close(gradient, expected_gradient, times=times)


@pytest.mark.parametrize("form", ["labels", "dense", "flat"])
@pytest.mark.parametrize("name", ["dr", "focal", "bce", "detection"])
def test_every_branch(name, form, batch):
    logits, labels, iou = batch
    dense = to_dense(labels)
    if form == "flat":
        logits, dense = logits.flatten(), dense.flatten()
    targets = labels if form == "labels" else dense.float()
    boxes = torch.tensor([0.0, 0.0, 2.0, 2.0], dtype=torch.float64) + iou[:, None]
    if name == "dr":
        assert_same_loss(lambda x: rankloss.dr_loss(x, targets), lambda x: dr(x, dense), logits, times=10)
    elif name == "detection":
        rows = dense.reshape(2, NUM_ANCHORS, NUM_CLASSES) if form != "flat" else dense[:, None]
        for task_weight in (0.0, 0.5):
            assert_same_loss(
                partial(
                    rankloss.harmonic_detection_loss,
                    targets=targets,
                    pred_boxes=boxes,
                    target_boxes=boxes + 0.3,
                    classification="focal",
                    task_contrastive_weight=task_weight,
                ),
                partial(detection, dense=rows, boxes=boxes, task_weight=task_weight),
                logits,
                times=10,
            )
    else:
        loss = rankloss.iou_balanced_focal_loss if name == "focal" else rankloss.iou_balanced_bce_loss
        options = {} if name == "focal" else {"negative": 1.0, "positive": 1.0, "gamma": 0.0}
        assert_same_loss(lambda x: loss(x, targets, iou), lambda x: focal(x, dense, iou, **options), logits, times=10)


@pytest.mark.parametrize("form", ["labels", "dense"])
def test_dr_of_images_whose_size_is_odd(form, batch):
    logits, labels, _ = batch
    dense = to_dense(labels)
    assert_same_loss(
        lambda x: rankloss.dr_loss(x, labels if form == "labels" else dense, per_image=True),
        lambda x: (dr(x[0], dense[0]) + dr(x[1], dense[1])) / 2,
        logits,
        times=10,
    )


def test_iou_of_one_positive_too_many_or_too_few(batch):
    from triton_rankloss.kernels.pointwise import iou_balanced

    logits, labels, iou = batch
    parameters = 1.5, 0.75, 0.25, 2.0, None, None
    for targets in (labels, to_dense(labels)):
        assert iou_balanced.focal_forward(logits, targets, iou, *parameters)[0].isfinite()
        assert iou_balanced.focal_forward(logits, targets, iou[1:], *parameters)[0].isnan()
        assert iou_balanced.focal_forward(logits, targets, torch.cat([iou, iou[:1]]), *parameters)[0].isnan()


def test_only_blocks_of_negatives_alone_are_background(batch):
    from triton_rankloss.kernels.pointwise import dr as kernels

    logits, labels, _ = batch
    dense = to_dense(labels)
    expected = [bool((block == 0).all()) and len(block) == 32 for block in dense.flatten().split(32)]
    for targets in (labels, dense, dense.to(torch.int8), dense.double()):
        flags = kernels.forward(logits, targets, 0.5, 1.0, NEG_LAMBDA, 6.0, 4.0, False)[2]
        assert_equal(flags.flatten().bool(), torch.tensor(expected))

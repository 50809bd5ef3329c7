"""The reference works in blocks; how large they are changes nothing."""

import pytest
import torch
from cases import relative_error

import triton_rankloss as trl
from triton_rankloss.reference import blocks

NUM_CLASSES = 5
LOSSES = {
    "iou_balanced_focal": lambda x, labels, iou: trl.iou_balanced_focal_loss(x, labels, iou),
    "iou_balanced_cross_entropy": lambda x, labels, iou: trl.iou_balanced_cross_entropy_loss(
        x, labels.clamp(max=NUM_CLASSES - 1), iou
    ),
    "dr": lambda x, labels, iou: trl.dr_loss(x, labels),
    "dr_per_image": lambda x, labels, iou: trl.dr_loss(x, labels, per_image=True),
    "giou": lambda x, labels, iou: trl.generalized_box_iou_loss(x[..., :4], x[..., 1:]).sum(),
    "ciou": lambda x, labels, iou: trl.complete_box_iou_loss(x[..., :4], x[..., 1:]).sum(),
}


@pytest.mark.parametrize("form", ["dense", "labels"])
@pytest.mark.parametrize("loss", LOSSES)
def test_blocks_of_any_size_give_the_same(loss, form, monkeypatch):
    labels = torch.randint(-1, NUM_CLASSES + 1, (3, 40))
    labels[0] = NUM_CLASSES  # an image, and so blocks, without positives
    labels[1, :20] = -1  # blocks without candidates
    logits = torch.randn(3, 40, NUM_CLASSES, dtype=torch.float64, requires_grad=True)
    iou, targets = torch.rand(3, 40, dtype=torch.float64), labels
    if form == "dense" and "cross_entropy" not in loss:
        targets = (labels.unsqueeze(-1) == torch.arange(NUM_CLASSES)).float() - (labels < 0).float().unsqueeze(-1)

    expected = LOSSES[loss](logits, targets, iou)
    expected_gradient = torch.autograd.grad(expected, logits)[0]
    monkeypatch.setattr(blocks, "BLOCK", 16)
    actual = LOSSES[loss](logits, targets, iou)
    assert relative_error(actual, expected) < 1e-12
    assert relative_error(torch.autograd.grad(actual, logits)[0], expected_gradient) < 1e-12

"""What the tests of the IoU-balanced losses share."""

import pytest
import torch
from torch.nn.functional import one_hot

import triton_rankloss as trl

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


def make_batch(device):
    """Logits [2, 20, 3] in float64, labels [2, 20] and IoU [2, 20], NaN but for positives."""
    logits = 3 * torch.randn(2, 20, NUM_CLASSES, dtype=torch.float64)
    labels = torch.randint(-1, NUM_CLASSES + 1, (2, 20))
    iou = torch.rand(2, 20, dtype=torch.float64)
    iou[(labels < 0) | (labels == NUM_CLASSES)] = torch.nan
    return logits.to(device), labels.to(device), iou.to(device)


def to_dense(labels):
    dense = one_hot(labels.clamp(min=0), NUM_CLASSES + 1)[..., :NUM_CLASSES]
    return dense.masked_fill((labels < 0).unsqueeze(-1), -1)

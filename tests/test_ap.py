"""AP Loss: the authors' vectors, and values worked out by hand."""

import pytest
import torch
from cases import PRECISE_DTYPES, assert_close, golden, load

import triton_rankloss as rankloss


def loss_and_gradient(logits, targets, **options):
    logits = logits.clone().requires_grad_()
    loss = rankloss.ap_loss(logits, targets, **options)
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("path", golden("ap"), ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", PRECISE_DTYPES)
def test_golden(path, dtype, device):
    case = load(path)
    logits, targets = case["logits"].to(device, dtype), case["targets"].to(device)
    loss, gradient = loss_and_gradient(logits, targets, delta=case["delta"].item())
    assert_close(loss, case["loss"])
    assert_close(gradient, case["grad_logits"])


def test_by_hand(device):
    # delta = 1. Positives 0 and 2, negative 1: H(1 - 0) = 1, H(1 - 2) = 0, H(2 - 0) = 1.
    # prec = 2 / (2 + 1) and 1 / 1; the higher positive has the better precision, so q = prec.
    # loss = 1 - (2/3 + 1) / 2 = 1/6; the error 1/3 of the first goes to the negative, half of it after the mean.
    logits = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64, device=device)
    loss, gradient = loss_and_gradient(logits, torch.tensor([1, 1, 0], device=device))
    assert_close(loss, 1 / 6)
    assert_close(gradient, [-1 / 6, 0, 1 / 6])


def test_interpolation_by_hand(device):
    # delta = 0. Positives 0 and 2, negatives 3, 3, 3: prec = 2/5 for the lower, 1/4 for the higher one.
    # Walking up, the higher positive keeps 2/5: loss 3/5, and each positive hands 3/10 to the negatives, 1/10 each.
    logits = torch.tensor([0.0, 2.0, 3.0, 3.0, 3.0], dtype=torch.float64, device=device)
    targets = torch.tensor([1, 1, 0, 0, 0], device=device)
    loss, gradient = loss_and_gradient(logits, targets, delta=0)
    assert_close(loss, 3 / 5)
    assert_close(gradient, [-0.3, -0.3, 0.2, 0.2, 0.2])
    plain, _ = loss_and_gradient(logits, targets, delta=0, interpolate=False)
    assert_close(plain, 1 - (2 / 5 + 1 / 4) / 2)

"""aLRP Loss: the authors' vectors, literal loops, and values worked out by hand."""

import literal
import pytest
import torch
from cases import KINDS, dense, golden, load, relative_error, scores

import triton_rankloss as trl


def losses_and_gradients(logits, targets, errors, **options):
    logits, errors = logits.clone().requires_grad_(), errors.clone().requires_grad_()
    losses = trl.alrp_loss(logits, targets, errors, **options)
    (gradient,) = torch.autograd.grad(losses.classification, logits, retain_graph=True)
    (error_gradient,) = torch.autograd.grad(losses.localization, errors)
    return losses.classification.item(), losses.localization.item(), gradient, error_gradient


@pytest.mark.parametrize("path", golden("alrp"), ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(path, dtype, device):
    case = load(path)
    logits, targets = case["logits"].to(device, dtype), case["targets"].to(device)
    errors = case["loc_errors"].to(device, dtype)
    classification, localization, gradient, error_gradient = losses_and_gradients(
        logits, targets, errors, delta=case["delta"].item()
    )
    assert classification == pytest.approx(case["loss_cls"].item(), rel=1e-6)
    assert relative_error(gradient, case["grad_logits"]) <= 1e-6
    if "ties" not in path.stem:  # there the authors' localization depends on how their sort left equal scores
        assert localization == pytest.approx(case["loss_loc"].item(), rel=1e-6)
        assert relative_error(error_gradient, case["grad_loc_errors"]) <= 1e-6


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_literal_loops(kind, delta, device):
    positives, negatives = scores(kind, 11, 60)
    errors = torch.rand(11, dtype=torch.float64)
    logits, targets = dense(positives, negatives)
    negatives = logits[targets == 0]
    expected = literal.alrp(positives.tolist(), negatives.tolist(), errors.tolist(), delta)
    classification, localization, gradient, error_gradient = losses_and_gradients(
        logits.to(device), targets.to(device), errors.to(device), delta=delta
    )
    gradient = gradient.cpu()
    assert classification == pytest.approx(expected[0], rel=1e-10, abs=1e-12)
    assert localization == pytest.approx(expected[1], rel=1e-10, abs=1e-12)
    assert gradient[targets == 1].tolist() == pytest.approx(expected[2], rel=1e-10, abs=1e-12)
    assert gradient[targets == 0].tolist() == pytest.approx(expected[3], rel=1e-10, abs=1e-12)
    assert error_gradient.tolist() == pytest.approx(expected[4], rel=1e-10, abs=1e-12)
    assert gradient.sum().item() == pytest.approx(0, abs=1e-12)


def test_by_hand(device):
    # delta = 1. Positives 0 (e = 0.4) and 2 (e = 0.2), negative 1: H(1 - 0) = 1, H(1 - 2) = 0, H(2 - 0) = 1.
    # rank = 2 + 1 and 1; classification = 1 - (2/3 + 1) / 2 = 1/6.
    # localization = ((0.4 + 0.2) / 3 + 0.2 / 1) / 2 = 0.2, its gradient (1/3, 1/3 + 1) / 2.
    # f of the lower positive = (1 + 0.2) / 3 = 0.4: half of it moves it up, and the negative down.
    logits = torch.tensor([0.0, 2.0, 1.0], device=device)
    targets = torch.tensor([1, 1, 0], device=device)
    errors = torch.tensor([0.4, 0.2], device=device)
    classification, localization, gradient, error_gradient = losses_and_gradients(logits, targets, errors)
    assert classification == pytest.approx(1 / 6)
    assert localization == pytest.approx(0.2)
    assert gradient.tolist() == pytest.approx([-0.2, 0, 0.2])
    assert error_gradient.tolist() == pytest.approx([1 / 6, 2 / 3])


def test_equal_positives_share_their_errors(device):
    # Two positives of one score, no negative that matters: each has rank 1 + 1/2 and sees both errors.
    logits = torch.tensor([1.0, 1.0, -9.0], device=device)
    targets = torch.tensor([1, 1, 0], device=device)
    localization = trl.alrp_loss(logits, targets, torch.tensor([0.3, 0.6], device=device)).localization
    assert localization.item() == pytest.approx(0.9 / 1.5)


def test_positives_without_false_positives_get_no_update(device):
    # The negative reaches H = 4e-6 of the positive: below eps there is no update, with eps = 0 there is one.
    logits = torch.tensor([0.0, -1 + 8e-6, 5.0], dtype=torch.float64, device=device)
    targets = torch.tensor([1, 0, 1], device=device)
    errors = torch.tensor([0.5, 0.5], dtype=torch.float64, device=device)
    assert losses_and_gradients(logits, targets, errors)[2].abs().max().item() == 0
    assert losses_and_gradients(logits, targets, errors, eps=0)[2][1].item() > 0.1


def test_one_error_for_each_positive(device):
    logits, targets = torch.zeros(5, device=device), torch.tensor([1, 1, 0, 0, 0], device=device)
    with pytest.raises(ValueError, match=r"localization_errors .* 2 positives.* got shape \(3,\)"):
        trl.alrp_loss(logits, targets, torch.zeros(3, device=device))

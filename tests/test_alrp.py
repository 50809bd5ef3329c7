"""aLRP Loss: the authors' vectors, and values worked out by hand."""

import pytest
import torch
from cases import PRECISE_DTYPES, assert_close, golden, load
from ranking_losses import evaluate

import triton_rankloss as rankloss


@pytest.mark.parametrize("path", golden("alrp"), ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", PRECISE_DTYPES)
def test_golden(path, dtype, device):
    case = load(path)
    logits, errors = case["logits"].to(device, dtype), case["loc_errors"].to(device, dtype)
    losses, gradients = evaluate("alrp", logits, case["targets"].to(device), errors, delta=case["delta"].item())
    assert_close(losses[0], case["loss_cls"])
    assert_close(gradients[0], case["grad_logits"])
    if "ties" not in path.stem:  # there the authors' localization depends on how their sort left equal scores
        assert_close(losses[1], case["loss_loc"])
        assert_close(gradients[1], case["grad_loc_errors"])


def test_by_hand(device):
    # delta = 1. Positives 0 (e = 0.4) and 2 (e = 0.2), negative 1: H(1 - 0) = 1, H(1 - 2) = 0, H(2 - 0) = 1.
    # rank = 2 + 1 and 1; classification = 1 - (2/3 + 1) / 2 = 1/6.
    # localization = ((0.4 + 0.2) / 3 + 0.2 / 1) / 2 = 0.2, its gradient (1/3, 1/3 + 1) / 2.
    # f of the lower positive = (1 + 0.2) / 3 = 0.4: half of it moves it up, and the negative down.
    logits = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64, device=device)
    errors = torch.tensor([0.4, 0.2], dtype=torch.float64, device=device)
    losses, gradients = evaluate("alrp", logits, torch.tensor([1, 1, 0], device=device), errors)
    assert_close(torch.stack(losses), [1 / 6, 0.2], each=True)
    assert_close(gradients[0], [-0.2, 0, 0.2])
    assert_close(gradients[1], [1 / 6, 2 / 3], each=True)


def test_equal_positives_share_their_errors(device):
    # Two positives of one score, no negative that matters: each has rank 1 + 1/2 and sees both errors.
    logits = torch.tensor([1.0, 1.0, -9.0], dtype=torch.float64, device=device)
    errors = torch.tensor([0.3, 0.6], dtype=torch.float64, device=device)
    assert_close(rankloss.alrp_loss(logits, torch.tensor([1, 1, 0], device=device), errors).localization, 0.9 / 1.5)


def test_positives_without_false_positives_get_no_update(device):
    # The negative reaches H = 4e-6 of the positive: below eps there is no update, with eps = 0 there is one.
    logits = torch.tensor([0.0, -1 + 8e-6, 5.0], dtype=torch.float64, device=device)
    targets, errors = torch.tensor([1, 0, 1], device=device), logits.new_full((2,), 0.5)
    assert not evaluate("alrp", logits, targets, errors)[1][0].any()
    assert evaluate("alrp", logits, targets, errors, eps=0)[1][0][1].item() > 0.1

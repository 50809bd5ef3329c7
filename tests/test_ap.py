"""AP Loss: the authors' vectors, literal loops, and values worked out by hand."""

import literal
import pytest
import torch
from cases import KINDS, dense, golden, load, relative_error, scores
from hypothesis import given, settings, strategies as st

import triton_rankloss as trl


def loss_and_gradient(logits, targets, **options):
    logits = logits.clone().requires_grad_()
    loss = trl.ap_loss(logits, targets, **options)
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


@pytest.mark.parametrize("path", golden("ap"), ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(path, dtype, device):
    case = load(path)
    logits, targets = case["logits"].to(device, dtype), case["targets"].to(device)
    loss, gradient = loss_and_gradient(logits, targets, delta=case["delta"].item())
    assert abs(loss.item() - case["loss"].item()) <= 1e-6 * abs(case["loss"].item())
    assert relative_error(gradient, case["grad_logits"]) <= 1e-6


@pytest.mark.parametrize("interpolate", [True, False])
@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_literal_loops(kind, delta, interpolate, device):
    positives, negatives = scores(kind, 11, 60)
    logits, targets = dense(positives, negatives)
    negatives = logits[targets == 0]
    expected, to_positives, to_negatives = literal.ap(positives.tolist(), negatives.tolist(), delta, interpolate)
    loss, gradient = loss_and_gradient(logits.to(device), targets.to(device), delta=delta, interpolate=interpolate)
    gradient = gradient.cpu()
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert gradient[targets == 1].tolist() == pytest.approx(to_positives, rel=1e-10, abs=1e-12)
    assert gradient[targets == 0].tolist() == pytest.approx(to_negatives, rel=1e-10, abs=1e-12)


def test_by_hand(device):
    # delta = 1. Positives 0 and 2, negative 1: H(1 - 0) = 1, H(1 - 2) = 0, H(2 - 0) = 1.
    # prec = 2 / (2 + 1) and 1 / 1; the higher positive has the better precision, so q = prec.
    # loss = 1 - (2/3 + 1) / 2 = 1/6; the error 1/3 of the first goes to the negative, half of it after the mean.
    logits = torch.tensor([0.0, 2.0, 1.0], device=device)
    loss, gradient = loss_and_gradient(logits, torch.tensor([1, 1, 0], device=device))
    assert loss.item() == pytest.approx(1 / 6)
    assert gradient.tolist() == pytest.approx([-1 / 6, 0, 1 / 6])


def test_interpolation_by_hand(device):
    # delta = 0. Positives 0 and 2, negatives 3, 3, 3: prec = 2/5 for the lower, 1/4 for the higher one.
    # Walking up, the higher positive keeps 2/5: loss 3/5, and each positive hands 3/10 to the negatives, 1/10 each.
    logits = torch.tensor([0.0, 2.0, 3.0, 3.0, 3.0], device=device)
    targets = torch.tensor([1, 1, 0, 0, 0], device=device)
    loss, gradient = loss_and_gradient(logits, targets, delta=0)
    assert loss.item() == pytest.approx(3 / 5)
    assert gradient.tolist() == pytest.approx([-0.3, -0.3, 0.2, 0.2, 0.2])
    plain, _ = loss_and_gradient(logits, targets, delta=0, interpolate=False)
    assert plain.item() == pytest.approx(1 - (2 / 5 + 1 / 4) / 2)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=7),
    st.lists(st.integers(-40, 40), min_size=1, max_size=9),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(-100, 100),
)
def test_identities(p, n, delta, shift):
    """Gradients sum to zero, constants change nothing, a doubled negative is two negatives of half the step."""
    logits = torch.tensor([*p, *n], dtype=torch.float64) / 8
    targets = torch.tensor([1] * len(p) + [0] * len(n))
    loss, gradient = loss_and_gradient(logits, targets, delta=delta)
    assert 0 <= loss.item() <= 1
    assert gradient.sum().item() == pytest.approx(0, abs=1e-12)
    shifted, shifted_gradient = loss_and_gradient(logits + shift, targets, delta=delta)
    assert shifted.item() == pytest.approx(loss.item(), abs=1e-10)
    assert shifted_gradient.tolist() == pytest.approx(gradient.tolist(), abs=1e-10)


def test_a_small_delta_tends_to_the_hard_step(device):
    positives, negatives = scores("random", 9, 50)
    logits, targets = (x.to(device) for x in dense(positives, negatives))
    hard, hard_gradient = loss_and_gradient(logits, targets, delta=0)
    soft, soft_gradient = loss_and_gradient(logits, targets, delta=1e-7)
    assert soft.item() == pytest.approx(hard.item(), rel=1e-9)
    assert relative_error(soft_gradient, hard_gradient) < 1e-9


def test_duplicated_negatives_weigh_two(device):
    # b_i doubles, a_i stays: prec = a / (a + 2 b).
    positives, negatives = scores("random", 6, 30)
    logits, targets = dense(positives, torch.cat([negatives, negatives]))
    loss, _ = loss_and_gradient(logits.to(device), targets.to(device), interpolate=False)
    expected = 0.0
    for p in positives.tolist():
        among = 1 + sum(literal.step(q - p, 1.0) for q in positives.tolist()) - 0.5
        above = 2 * sum(literal.step(n - p, 1.0) for n in negatives.tolist())
        expected += (1 - among / (among + above)) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-10)

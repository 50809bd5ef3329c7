"""Statistics of a ranking, read out of what a loss has kept for backward."""

import pytest
import torch

import triton_rankloss as trl


def test_by_hand(device):
    # Positives at 3 (class 0) and 0 (class 1); above them one negative and three.
    logits = torch.tensor([[3.0, 1.0], [4.0, 0.0], [2.0, -1.0]], device=device).requires_grad_()
    targets = torch.tensor([[1, 0], [0, 1], [0, 0]], device=device)
    found = trl.ranking_statistics(trl.ap_loss(logits, targets, delta=0.0))
    assert found.num_positives == 2
    assert found.mean_precision.item() == pytest.approx((1 / 2 + 2 / 5) / 2)
    assert found.worst_rank.item() == pytest.approx(5)
    assert found.negatives_above.item() == pytest.approx(3)
    assert found.class_precision.tolist() == pytest.approx([1 / 2, 2 / 5])


@pytest.fixture
def batch(device):
    logits = torch.randn(3, 20, 4, device=device).requires_grad_()
    labels = torch.randint(0, 9, (3, 20), device=device).clamp(max=4)
    labels[2] = 4  # an image without positives
    labels[labels == 1] = 0  # a class without positives
    return logits, labels


@pytest.mark.parametrize("per_image", [False, True])
def test_the_same_from_every_loss(batch, per_image, device):
    _, labels = batch
    values = torch.rand(int((labels < 4).sum()), device=device)
    options = {"delta": 0.7, "per_image": per_image}
    ap = trl.ap_loss(*batch, interpolate=False, **options)
    found = trl.ranking_statistics(ap)
    assert found.mean_precision.item() == pytest.approx(1 - ap.item(), rel=1e-5)
    classes = labels[labels < 4]
    assert found.class_precision.isnan().tolist() == [not (classes == c).any() for c in range(4)]
    others = [
        trl.ap_loss(*batch, max_positives=len(values) + 5, **options),
        trl.alrp_loss(*batch, values, **options).classification,
        *trl.rank_sort_loss(*batch, values, **options),
    ]
    for other in others:
        for one, two in zip(found, trl.ranking_statistics(other)):
            torch.testing.assert_close(torch.as_tensor(two), torch.as_tensor(one), equal_nan=True, rtol=1e-5, atol=1e-5)


def test_it_leaves_the_gradient_alone(batch):
    logits, labels = batch
    (expected,) = torch.autograd.grad(trl.ap_loss(logits, labels), logits)
    loss = trl.ap_loss(logits, labels)
    trl.ranking_statistics(loss)
    loss.backward()
    assert torch.equal(logits.grad, expected)
    with pytest.raises(RuntimeError, match="saved"):
        trl.ranking_statistics(loss)


def test_without_positives_and_without_classes(device):
    logits = torch.randn(6, device=device).requires_grad_()
    found = trl.ranking_statistics(trl.ap_loss(logits, torch.zeros(6, device=device)))
    assert found.num_positives == 0
    assert all(value.isnan().all() for value in found[1:])
    targets = torch.tensor([1, 0, 0, 0, 0, 1], device=device)
    assert trl.ranking_statistics(trl.ap_loss(logits, targets)).class_precision.shape == (1,)


def test_bad_arguments(batch):
    logits, labels = batch
    with pytest.raises(TypeError, match="loss must be a tensor; got float"):
        trl.ranking_statistics(0.5)
    with pytest.raises(ValueError, match="itself; got a tensor from MulBackward0"):
        trl.ranking_statistics(2 * trl.ap_loss(logits, labels))
    with pytest.raises(ValueError, match="got a tensor from no differentiable operation"):
        trl.ranking_statistics(trl.ap_loss(logits.detach(), labels))
    with pytest.raises(ValueError, match=r"itself; got a tensor from .*dr_loss"):
        trl.ranking_statistics(trl.dr_loss(logits, labels))

"""The modules of the ranking losses: hyper-parameters, boxes, and the weights they balance with."""

import pytest
import torch
from cases import assert_close
from torch import distributed as dist

import triton_rankloss as rankloss
from triton_rankloss.cli.operators import on_reference

# Two positives. Boxes 1: IoU 1/2, enclosing box = the larger one, so GIoU = 1/2; boxes 2 are equal.
PRED = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 3.0, 3.0]])
TARGET = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 3.0, 3.0]])


@pytest.fixture
def batch(device):
    return torch.randn(30, device=device), torch.tensor([1, 1] + [0] * 28, device=device)


def test_alrp_makes_errors_from_boxes(batch, device):
    loss = rankloss.ALRPLoss(tau=0.6, initial_weight=1).to(device)
    from_boxes = loss(*batch, pred_boxes=PRED.to(device), target_boxes=TARGET.to(device))
    # e = (1 - GIoU) / (2 (1 - tau)) = 0.5 / 0.8 and 0
    by_hand = rankloss.alrp_loss(*batch, torch.tensor([0.625, 0.0], device=device))
    torch.testing.assert_close(from_boxes, by_hand)


def test_alrp_balances_by_the_means_of_an_epoch(batch, device):
    loss = rankloss.ALRPLoss(steps_per_epoch=2).to(device)
    errors = torch.tensor([0.3, 0.9], device=device)
    plain = rankloss.alrp_loss(*batch, errors)
    half = rankloss.alrp_loss(*batch, errors / 2)
    assert loss(*batch, errors).localization.item() == pytest.approx(50 * plain.localization.item())
    assert loss(*batch, errors / 2).localization.item() == pytest.approx(50 * half.localization.item())
    localization = (plain.localization + half.localization).item() / 2
    expected = (localization + plain.classification.item()) / localization
    assert loss.localization_weight.item() == pytest.approx(expected, rel=1e-6)
    assert loss(*batch, errors).localization.item() == pytest.approx(expected * plain.localization.item(), rel=1e-6)


def test_alrp_weight_can_be_set_at_the_end_of_an_epoch_and_survives_saving(batch, device):
    loss = rankloss.ALRPLoss().to(device)
    loss.end_epoch()  # nothing was seen: the weight stays
    assert loss.localization_weight.item() == 50
    errors = torch.tensor([0.3, 0.9], device=device)
    classification, localization = (part.item() for part in loss(*batch, errors))
    localization /= 50
    loss.end_epoch()
    assert loss.localization_weight.item() == pytest.approx((localization + classification) / localization, rel=1e-6)
    restored = rankloss.ALRPLoss().to(device)
    restored.load_state_dict(loss.state_dict())
    assert restored.localization_weight == loss.localization_weight
    evaluated = restored.eval()(*batch, errors)
    assert restored.sums.abs().sum() == 0
    assert evaluated.localization.item() == pytest.approx(localization * restored.localization_weight.item(), rel=1e-6)


def test_alrp_sums_go_on_growing_in_half_precision(batch, device):
    loss = rankloss.ALRPLoss().to(device).bfloat16()
    loss.sums.fill_(256)  # to which bfloat16 adds nothing below 1
    errors = torch.tensor([0.3, 0.9], device=device)
    parts = rankloss.alrp_loss(*batch, errors)
    loss(*batch, errors)
    assert loss.sums.tolist() == pytest.approx([256 + part.item() for part in parts], rel=1e-6)


def test_a_loss_with_a_group_can_be_copied():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = torch.nn.Sequential(rankloss.RankSortLoss(group=dist.group.WORLD, delta=0.25))
        (copied,) = torch.optim.swa_utils.AveragedModel(model).module
        assert copied.group is model[0].group
        assert copied.delta == 0.25
        assert copied.box_weight is not model[0].box_weight
    finally:
        dist.destroy_process_group()


def test_alrp_gradient_reaches_the_boxes_and_not_the_weight(batch, device):
    loss = rankloss.ALRPLoss(steps_per_epoch=1).to(device)
    pred = PRED.to(device).requires_grad_()
    for _ in range(2):
        loss(*batch, pred_boxes=pred, target_boxes=TARGET.to(device)).localization.backward()
    assert pred.grad[0].abs().max() > 0
    assert not loss.localization_weight.requires_grad


def test_rank_sort_takes_targets_from_boxes_and_balances(batch, device):
    loss = rankloss.RankSortLoss().to(device)
    pred = PRED.to(device).requires_grad_()
    losses = loss(*batch, pred_boxes=pred, target_boxes=TARGET.to(device))
    ranking, sorting = rankloss.rank_sort_loss(*batch, torch.tensor([0.5, 1.0], device=device))
    assert losses.ranking.item() == pytest.approx(ranking.item())
    assert losses.sorting.item() == pytest.approx(sorting.item(), abs=1e-7)
    # Mean GIoU loss (1/2 + 0) / 2; balanced, it weighs as much as the other two together.
    assert losses.box.item() == pytest.approx((ranking + sorting).item(), rel=1e-6)
    assert loss.box_weight.item() == pytest.approx(4 * (ranking + sorting).item(), rel=1e-6)
    losses.box.backward()
    assert pred.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("module", "kinds"), [(rankloss.ALRPLoss, ["giou", "giou"]), (rankloss.RankSortLoss, ["overlap", "giou", "giou"])]
)
def test_boxes_go_through_the_fused_kernels(module, kinds, device, interpreted, monkeypatch):
    """The loss, and the gradients of logits and boxes, are those of the reference from end to end."""
    logits, targets = torch.randn(40, device=device), (torch.arange(40, device=device) % 5 == 0).float()
    target = torch.cat([corner := 6 * torch.rand(8, 2), corner + 1 + 3 * torch.rand(8, 2)], 1).to(device)
    pred = target + torch.randn(8, 4, device=device) / 4
    launched = []
    if interpreted or device.type == "cuda":
        from triton_rankloss.kernels.pointwise import boxes

        for launch in (boxes.box_loss, boxes.box_loss_backward):
            monkeypatch.setattr(boxes, launch.__name__, lambda *a, launch=launch: launched.append(a[-3]) or launch(*a))

    def run():
        leaves = logits.clone().requires_grad_(), pred.clone().requires_grad_()
        losses = module().to(device)(leaves[0], targets, pred_boxes=leaves[1], target_boxes=target)
        return *losses, *torch.autograd.grad(sum(losses), leaves)

    actual = run()
    assert launched == (kinds if interpreted or device.type == "cuda" else [])
    with on_reference(device.type):
        expected = run()
    assert len(launched) == len(kinds) or not launched
    for value, wanted in zip(actual, expected):
        assert_close(value, wanted, times=10)


def test_without_positives(device):
    logits, targets, boxes = (
        torch.randn(8, device=device),
        torch.zeros(8, device=device),
        torch.zeros(0, 4, device=device),
    )
    for loss in (rankloss.ALRPLoss(steps_per_epoch=1), rankloss.RankSortLoss()):
        loss.to(device)
        before = loss.state_dict()
        assert all(part.item() == 0 for part in loss(logits, targets, pred_boxes=boxes, target_boxes=boxes))
        for name in ("localization_weight", "box_weight"):
            if name in before:
                assert loss.state_dict()[name] == before[name]


def test_bad_arguments(batch):
    with pytest.raises(ValueError, match="either localization_errors, or pred_boxes and target_boxes"):
        rankloss.ALRPLoss()(*batch)
    with pytest.raises(ValueError, match="either localization_errors, or pred_boxes and target_boxes"):
        rankloss.ALRPLoss()(*batch, torch.zeros(2), pred_boxes=PRED, target_boxes=TARGET)
    with pytest.raises(ValueError, match="pred_boxes and target_boxes; got pred_boxes"):
        rankloss.RankSortLoss()(*batch, pred_boxes=PRED)
    with pytest.raises(ValueError, match="tau must be >= 0 and < 1 and finite; got 1"):
        rankloss.ALRPLoss(tau=1)
    with pytest.raises(TypeError, match="steps_per_epoch must be an int or None; got float"):
        rankloss.ALRPLoss(steps_per_epoch=1.5)

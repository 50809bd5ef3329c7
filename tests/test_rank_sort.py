"""Rank & Sort Loss: the authors' vectors, and values worked out by hand."""

import pytest
import torch
from cases import PRECISE_DTYPES, assert_close, assert_equal, dense, golden, load, scores
from ranking_losses import evaluate

import triton_rankloss as rankloss


@pytest.mark.parametrize("path", golden("rs"), ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", PRECISE_DTYPES)
def test_golden(path, dtype, device):
    case = load(path)
    logits, targets = case["logits"].to(device, dtype), case["targets"].to(device)
    losses, gradients = evaluate("rank_sort", logits, targets, targets[targets > 0], delta=case["delta"].item())
    assert_close(losses[0], case["loss_rank"])
    assert_close(losses[1], case["loss_sort"], atol=1e-12)
    assert_close(sum(gradients), case["grad_logits"])


def test_by_hand(device):
    # delta = 0.5. Positives 0 (t = 0.9) and 1 (t = 0.5), far above the only negative: no ranking error.
    # H(1 - 0) = 1, H(0 - 1) = 0, H(0) = 1/2. The lower positive: current = (0.5 * 0.1 + 1 * 0.5) / 1.5 = 0.55 / 1.5,
    # target (itself alone) = 0.1. sorting = 0.55 / 1.5 - 0.1 = 4/15, to the other positive; mean over two: 2/15.
    logits = torch.tensor([0.0, 1.0, -9.0], dtype=torch.float64, device=device)
    iou = torch.tensor([0.9, 0.5], dtype=torch.float64, device=device)
    losses, gradients = evaluate("rank_sort", logits, torch.tensor([1, 1, 0], device=device), iou)
    assert losses[0] == 0
    assert not gradients[0].any()
    assert_close(losses[1], 2 / 15)
    assert_close(gradients[1], [-2 / 15, 2 / 15, 0])


def test_ranking_by_hand(device):
    # delta = 0.5, one positive at 0, a negative at 0.25: b = H(0.25) = 0.75, r = H(0) = 0.5, ranking = 0.6.
    logits = torch.tensor([0.0, 0.25], dtype=torch.float64, device=device)
    losses, gradients = evaluate("rank_sort", logits, torch.tensor([1, 0], device=device), logits.new_full((1,), 0.7))
    assert_close(torch.stack(losses), [0.6, 0])
    assert_close(gradients[0], [-0.6, 0.6])


def test_upstream_gradients_of_the_parts_are_separate(device):
    iou = torch.rand(7, dtype=torch.float64)
    logits, targets = (x.to(device) for x in dense(*scores("random", 7, 40), iou))
    _, (of_ranking, of_sorting) = evaluate("rank_sort", logits, targets, iou.to(device))
    logits.requires_grad_()
    losses = rankloss.rank_sort_loss(logits, targets)
    (2 * losses.ranking - 3 * losses.sorting).backward()
    assert_close(logits.grad, 2 * of_ranking - 3 * of_sorting)


def test_iou_in_the_targets(device):
    iou = torch.rand(7, dtype=torch.float64, device=device)
    logits, targets = (x.to(device) for x in dense(*scores("random", 7, 40), iou.cpu()))
    targets[targets == 0] = torch.where(torch.rand(40, device=device) < 0.2, -1.0, 0.0).double()
    leaf = logits.clone().requires_grad_()
    losses = rankloss.rank_sort_loss(leaf, targets)
    of_parts = [torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in losses]
    expected = evaluate("rank_sort", logits, targets.ceil().long(), iou)
    assert_equal(([loss.detach() for loss in losses], of_parts), expected)


def test_labels_need_iou(device):
    with pytest.raises(ValueError, match="iou must be given"):
        rankloss.rank_sort_loss(torch.zeros(4, 3, device=device), torch.zeros(4, dtype=torch.long, device=device))
    with pytest.raises(ValueError, match="iou must be given"):
        rankloss.rank_sort_loss(torch.zeros(4, device=device), torch.zeros(4, dtype=torch.long, device=device))

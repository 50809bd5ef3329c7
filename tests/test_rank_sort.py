"""Rank & Sort Loss: the authors' vectors, literal loops, and values worked out by hand."""

import literal
import pytest
import torch
from cases import KINDS, dense, golden, load, relative_error, scores

import triton_rankloss as trl


def losses_and_gradients(logits, targets, iou=None, **options):
    logits = logits.clone().requires_grad_()
    losses = trl.rank_sort_loss(logits, targets, iou, **options)
    (of_ranking,) = torch.autograd.grad(losses.ranking, logits, retain_graph=True)
    (of_sorting,) = torch.autograd.grad(losses.sorting, logits)
    return losses.ranking.item(), losses.sorting.item(), of_ranking, of_sorting


@pytest.mark.parametrize("path", golden("rs"), ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(path, dtype, device):
    case = load(path)
    logits, targets = case["logits"].to(device, dtype), case["targets"].to(device)
    ranking, sorting, of_ranking, of_sorting = losses_and_gradients(logits, targets, delta=case["delta"].item())
    assert ranking == pytest.approx(case["loss_rank"].item(), rel=1e-6)
    assert sorting == pytest.approx(case["loss_sort"].item(), rel=1e-6, abs=1e-12)
    assert relative_error(of_ranking + of_sorting, case["grad_logits"]) <= 1e-6


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_literal_loops(kind, delta, device):
    positives, negatives = scores(kind, 11, 60)
    iou = (torch.rand(11, dtype=torch.float64) * 8).ceil() / 8  # some targets are equal
    logits, targets = dense(positives, negatives, iou)
    negatives = logits[targets == 0]
    expected = literal.rank_sort(positives.tolist(), negatives.tolist(), iou.tolist(), delta)
    ranking, sorting, of_ranking, of_sorting = losses_and_gradients(logits.to(device), targets.to(device), delta=delta)
    of_ranking, of_sorting = of_ranking.cpu(), of_sorting.cpu()
    assert ranking == pytest.approx(expected[0], rel=1e-10, abs=1e-12)
    assert sorting == pytest.approx(expected[1], rel=1e-10, abs=1e-12)
    assert of_ranking[targets > 0].tolist() == pytest.approx(expected[2], rel=1e-10, abs=1e-12)
    assert of_ranking[targets == 0].tolist() == pytest.approx(expected[3], rel=1e-10, abs=1e-12)
    assert of_sorting[targets > 0].tolist() == pytest.approx(expected[4], rel=1e-10, abs=1e-12)
    assert of_sorting[targets == 0].abs().max().item() == 0
    assert of_ranking.sum().item() == pytest.approx(0, abs=1e-12)
    assert of_sorting.sum().item() == pytest.approx(0, abs=1e-12)


def test_by_hand(device):
    # delta = 0.5. Positives 0 (t = 0.9) and 1 (t = 0.5), far above the only negative: no ranking error.
    # H(1 - 0) = 1, H(0 - 1) = 0, H(0) = 1/2. The lower positive: current = (0.5 * 0.1 + 1 * 0.5) / 1.5 = 0.55 / 1.5,
    # target (itself alone) = 0.1. sorting = 0.55 / 1.5 - 0.1 = 4/15, to the other positive; mean over two: 2/15.
    logits = torch.tensor([0.0, 1.0, -9.0], device=device)
    targets = torch.tensor([0.9, 0.5, 0.0], device=device)
    ranking, sorting, of_ranking, of_sorting = losses_and_gradients(logits, targets)
    assert ranking == 0
    assert sorting == pytest.approx(2 / 15)
    assert of_ranking.abs().max().item() == 0
    assert of_sorting.tolist() == pytest.approx([-2 / 15, 2 / 15, 0])


def test_ranking_by_hand(device):
    # delta = 0.5, one positive at 0, a negative at 0.25: b = H(0.25) = 0.75, r = H(0) = 0.5, ranking = 0.6.
    ranking, sorting, of_ranking, _ = losses_and_gradients(
        torch.tensor([0.0, 0.25], device=device), torch.tensor([0.7, 0.0], device=device)
    )
    assert (ranking, sorting) == (pytest.approx(0.6), 0)
    assert of_ranking.tolist() == pytest.approx([-0.6, 0.6])


def test_upstream_gradients_of_the_parts_are_separate(device):
    positives, negatives = scores("random", 7, 40)
    logits, targets = dense(positives, negatives, torch.rand(7, dtype=torch.float64))
    logits, targets = logits.to(device), targets.to(device)
    _, _, of_ranking, of_sorting = losses_and_gradients(logits, targets)
    logits.requires_grad_()
    losses = trl.rank_sort_loss(logits, targets)
    (2 * losses.ranking - 3 * losses.sorting).backward()
    assert relative_error(logits.grad, 2 * of_ranking - 3 * of_sorting) < 1e-12


def test_iou_per_positive_per_anchor_and_in_the_targets_agree(device):
    logits = torch.randn(2, 6, 3, dtype=torch.float64, device=device)
    labels = torch.tensor([[0, 3, 2, -1, 3, 1], [3, 3, 2, 2, -1, 0]], device=device)
    iou = torch.rand(2, 6, dtype=torch.float64, device=device)
    foreground = (labels >= 0) & (labels < 3)
    targets = torch.zeros_like(logits)
    targets[foreground] = iou[foreground].unsqueeze(1) * torch.nn.functional.one_hot(labels[foreground], 3)
    targets[labels < 0] = -1
    expected = losses_and_gradients(logits, targets)
    for given in (iou, iou[foreground]):
        actual = losses_and_gradients(logits, labels, given)
        assert actual[:2] == expected[:2]
        assert torch.equal(actual[2], expected[2])
        assert torch.equal(actual[3], expected[3])


def test_labels_need_iou(device):
    with pytest.raises(ValueError, match="iou must be given"):
        trl.rank_sort_loss(torch.zeros(4, 3, device=device), torch.zeros(4, dtype=torch.long, device=device))
    with pytest.raises(ValueError, match="iou must be given"):
        trl.rank_sort_loss(torch.zeros(4, device=device), torch.zeros(4, dtype=torch.long, device=device))

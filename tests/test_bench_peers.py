"""What the benchmarks compare with: peers are what they claim to be, on inputs that are what their names say."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import KINDS, assert_close, dense, scores

import triton_rankloss as rankloss
from triton_rankloss.reference import dense as pairs

sys.path.append(str(Path(__file__).parents[1]))
from bench.cases import with_peers
from bench.peers import OURS, YARDSTICK, bucketed, loop, pointwise, vectorized
from bench.peers.ranking import ranking_loss
from bench.peers.registry import peers_of
from bench.training import TRAININGS
from bench.workloads import BOXES, RANKING, REACH, Workload, scaling

EXACT = {"loop": loop.FORMULAS, "vectorized": vectorized.formulas(vectorized.BLOCKS)}
BUCKETS = {"sorted": bucketed.Buckets, "searched": bucketed.SearchedBuckets}
SMALL = Workload("small", (60, 8), 9, "hard", labels=True)


def both(kind, delta, formulas, num_positives=13, num_negatives=200, interpolate=True):
    """By loss (our losses, our gradient, sum of the formula's losses, its gradient), and what they were made of.

    Logits are float32, targets dense with IoUs, and errors, of which none are equal; some logits are ignored.
    """
    iou = torch.rand(num_positives).double() * 0.9 + 0.1
    logits, targets = (x.float() for x in dense(*scores(kind, num_positives, num_negatives), iou))
    targets[torch.randperm(targets.numel())[:5]] = -1
    positives, negatives, iou = logits[targets > 0], logits[targets == 0], targets[targets > 0]
    errors = torch.rand(iou.numel())
    logits.requires_grad_()
    ours = {
        "ap": [rankloss.ap_loss(logits, targets, delta=delta, interpolate=interpolate)],
        "alrp": rankloss.alrp_loss(logits, targets, errors, delta=delta),
        "rank_sort": rankloss.rank_sort_loss(logits, targets, delta=delta),
    }
    values = {"ap": [], "alrp": [errors], "rank_sort": [iou]}
    found = {}
    for loss, formula in formulas.items():
        value = ranking_loss(formula, logits, targets, values[loss], delta)
        gradients = [torch.autograd.grad(total, logits)[0] for total in (sum(ours[loss]), value)]
        found[loss] = ours[loss], gradients[0], value, gradients[1]
    return found, (positives, negatives, errors)


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "huge"])  # float32 loses digits at thousands
@pytest.mark.parametrize("peer", EXACT)
def test_exact_peers(peer, kind, delta):
    found, sample = both(kind, delta, EXACT[peer])
    for loss, (losses, gradient, value, peer_gradient) in found.items():
        assert_close(peer_gradient, gradient, times=10)
        if (peer, kind, loss) == ("loop", "ties", "alrp"):  # its localization takes ties in any order
            value, losses = loop.alrp(*sample, delta)[0][0], losses[:1]
        assert_close(value, sum(losses), times=10, atol=1e-6)


@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("make_buckets", BUCKETS.values(), ids=BUCKETS)
def test_buckets_are_exact_for_the_hard_step(make_buckets, kind):
    found, _ = both(kind, 0.0, bucketed.formulas(make_buckets), interpolate=False)
    for losses, gradient, value, peer_gradient in (found["ap"], found["rank_sort"]):
        assert_close(peer_gradient, gradient, times=10)
        assert_close(value, sum(losses), times=10, atol=1e-6)


@pytest.mark.parametrize("delta", [0.5, 1.0])
@pytest.mark.parametrize("make_buckets", BUCKETS.values(), ids=BUCKETS)
def test_buckets_are_approximate_for_a_soft_step(make_buckets, delta):
    found, _ = both("random", delta, bucketed.formulas(make_buckets), 20, 2000, interpolate=False)
    for losses, gradient, value, peer_gradient in found.values():
        assert_close(value, sum(losses), times=5e4)
        error = (peer_gradient - gradient).abs().sum() / gradient.abs().sum()
        assert 1e-4 < error < 0.2


def test_both_kinds_of_buckets_are_the_same():
    positives, negatives = (x.float() for x in scores("random", 11, 300))
    sorted_, searched = (make(positives, negatives) for make in BUCKETS.values())
    assert sorted_.sizes.tolist() == searched.sizes.tolist()
    assert_close(searched.means, sorted_.means, times=10)
    shares = torch.rand(12)
    assert torch.equal(sorted_.to_negatives(shares), searched.to_negatives(shares))


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_the_matrix_in_blocks_and_before_compilation(delta, monkeypatch):
    monkeypatch.setattr(vectorized, "ELEMENTS_AT_ONCE", 700)  # 63 negatives a block, the last one smaller
    positives, negatives = (x.float() for x in scores("random", 11, 300))
    weights = torch.rand(11)
    assert_close(vectorized.count(negatives, positives, delta), pairs.count(negatives, positives, delta), times=10)
    carried = pairs.transport(negatives, positives, weights, delta)
    for transport in (vectorized.transport, vectorized.whole_transport):
        assert_close(transport(negatives, positives, weights, delta), carried, times=10)
    masses = torch.rand(11)
    expected = pairs.count(positives, positives, delta, masses)
    assert_close(vectorized.count(positives, positives, delta, masses), expected, times=10)


@pytest.mark.parametrize("loss", pointwise.FORMULAS)
def test_formulas_are_our_losses(loss):
    problem = (BOXES if loss == "giou" else SMALL).problem(0)
    ours, formula = (problem.loss_and_gradient(peer.loss) for peer in peers_of(loss)[:2])
    for actual, expected in zip(formula, ours, strict=True):
        assert_close(actual, expected, torch.float32, times=10)


def test_the_yardstick_is_the_balanced_focal_loss_without_weights():
    problem = SMALL.problem(0)
    given = problem.given
    expected = rankloss.iou_balanced_focal_loss(problem.leaf, given["labels"], given["iou_per_anchor"], eta=0)
    assert_close(pointwise.sigmoid_focal(problem.leaf, given), expected, times=10)


@pytest.mark.parametrize("name", ["million-trained", "fewer-ties", "proposals"])
def test_workloads_are_drawn_alike_every_time(name):
    workload = next(workload for workload in RANKING if workload.name == name)
    first = workload.problem(0)
    assert torch.equal(first.leaf, workload.problem(0).leaf)
    assert not torch.equal(first.leaf, workload.problem(1).leaf)
    assert first.leaf.dtype == workload.dtype
    positives = first.leaf.view(-1)[first.given["positions"]]
    assert positives.numel() == workload.num_positives == first.given["iou"].numel() == first.info["positives"]
    num_negatives = first.leaf.numel() - positives.numel()
    relevant = int((first.leaf >= positives.min() - REACH).sum()) - positives.numel()
    assert first.info["relevant"] == relevant
    share = {"init": 1.0}.get(workload.scores, workload.relevant)
    assert share is None or relevant == pytest.approx(share * num_negatives, rel=0 if share == 1 else 0.1)


@pytest.mark.parametrize(("kind", "least", "most"), [("mixed", 0.1, 0.3), ("init", 0, 0)])
def test_mixed_negatives_lie_on_both_sides_of_the_kinks_of_a_positive(kind, least, most):
    workload = next(workload for workload in scaling() if workload.name.startswith("positives="))
    assert workload.scores == "mixed"
    problem = replace(workload, scores=kind).problem(0)
    middle = problem.leaf.view(-1)[problem.given["positions"]].median()
    counted = pairs.step(problem.leaf.view(-1) - middle, REACH)
    for share in ((counted == 0).float().mean(), (counted == 1).float().mean()):
        assert least <= share <= most


def test_both_forms_of_targets_say_the_same():
    problems = {form: Workload("", (60, 8), 9, "hard", labels=form).problem(0) for form in (False, True)}
    assert torch.equal(problems[True].given["targets"], problems[True].given["labels"])
    positions = problems[False].given["targets"].view(-1).nonzero().squeeze(1)
    assert torch.equal(positions, problems[True].given["positions"])


def test_who_takes_part():
    def names(loss, workload):
        return {peer.name for _, _, peer in with_peers([(loss, workload)])}

    everyone = {OURS, "loop", "bucketed", "bucketed-search", "vectorized", "vectorized-compiled"}
    assert names("ap", SMALL) == everyone
    assert names("ap", Workload("many", (100_000, 1), 50_000, "hard")) == everyone - {"bucketed", "bucketed-search"}
    far = Workload("negatives=1e10", (10**9, 10), 100, "init")
    assert names("ap", far) == {OURS, "bucketed", "bucketed-search"}
    assert names("dr", SMALL) == names("giou", BOXES) | {YARDSTICK} == {OURS, "formula", "formula-compiled", YARDSTICK}
    for training in TRAININGS:
        assert names("ap", training) == {OURS, "loop", "bucketed", "vectorized", YARDSTICK}

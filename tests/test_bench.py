"""The peers of the benchmarks are what they claim to be: exact, or approximate by a bounded amount."""

import sys
from pathlib import Path

import pytest
import torch
from cases import KINDS, dense, relative_error, scores

import triton_rankloss as trl

sys.path.append(str(Path(__file__).parents[1]))
from bench.peers import bucketed, compiled, loop, vectorized

EXACT = {"loop": loop, "vectorized": vectorized}
BUCKETS = {"sorted": bucketed.Buckets, "searched": bucketed.SearchedBuckets}


def case(kind, num_positives=13, num_negatives=200):
    """Logits in float32, dense targets with IoUs, and errors, of which none are equal."""
    logits, targets = dense(*scores(kind, num_positives, num_negatives), torch.rand(num_positives).double() * 0.9 + 0.1)
    targets[torch.randperm(targets.numel())[:5]] = -1
    return logits.float(), targets.float(), torch.rand(int((targets > 0).sum()))


def result(losses, logits):
    """Losses, and the gradient of the first."""
    losses = losses if isinstance(losses, tuple) else (losses,)
    (gradient,) = torch.autograd.grad(sum(losses), logits)
    return torch.stack([loss.detach().double() for loss in losses]), gradient


def all_losses(module, logits, targets, errors, **options):
    return {
        "ap": result(module.ap_loss(logits, targets, **options), logits),
        "alrp": result(module.alrp_loss(logits, targets, errors, **options), logits),
        "rank_sort": result(module.rank_sort_loss(logits, targets, **options), logits),
    }


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "huge"])  # float32 loses digits at thousands
@pytest.mark.parametrize("peer", EXACT)
def test_exact_peers(peer, kind, delta):
    logits, targets, errors = case(kind)
    logits.requires_grad_()
    expected = all_losses(trl, logits, targets, errors, delta=delta)
    for loss, (losses, gradient) in all_losses(EXACT[peer], logits, targets, errors, delta=delta).items():
        if (peer, kind, loss) == ("loop", "ties", "alrp"):
            losses, expected_losses = losses[:1], expected[loss][0][:1]  # its localization takes ties in any order
        else:
            expected_losses = expected[loss][0]
        assert losses.tolist() == pytest.approx(expected_losses.tolist(), rel=1e-5, abs=1e-6), loss
        assert relative_error(gradient, expected[loss][1]) <= 1e-5, loss


@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("make_buckets", BUCKETS.values(), ids=BUCKETS)
def test_buckets_are_exact_for_the_hard_step(make_buckets, kind):
    logits, targets, _ = case(kind)
    logits.requires_grad_()
    expected = result(trl.ap_loss(logits, targets, delta=0, interpolate=False), logits)
    losses, gradient = result(bucketed.ap_loss(logits, targets, 0, make_buckets), logits)
    assert losses.tolist() == pytest.approx(expected[0].tolist(), rel=1e-5)
    assert relative_error(gradient, expected[1]) <= 1e-5
    expected = result(trl.rank_sort_loss(logits, targets, delta=0), logits)
    losses, gradient = result(bucketed.rank_sort_loss(logits, targets, 0, make_buckets=make_buckets), logits)
    assert losses.tolist() == pytest.approx(expected[0].tolist(), rel=1e-5, abs=1e-6)
    assert relative_error(gradient, expected[1]) <= 1e-5


@pytest.mark.parametrize("make_buckets", BUCKETS.values(), ids=BUCKETS)
def test_buckets_are_approximate_for_a_soft_step(make_buckets):
    logits, targets, errors = case("random", 20, 2000)
    logits.requires_grad_()
    exact = {
        "ap": result(trl.ap_loss(logits, targets, interpolate=False), logits),
        "alrp": result(trl.alrp_loss(logits, targets, errors), logits),
        "rank_sort": result(trl.rank_sort_loss(logits, targets), logits),
    }
    approximate = {
        "ap": result(bucketed.ap_loss(logits, targets, make_buckets=make_buckets), logits),
        "alrp": result(bucketed.alrp_loss(logits, targets, errors, make_buckets=make_buckets), logits),
        "rank_sort": result(bucketed.rank_sort_loss(logits, targets, make_buckets=make_buckets), logits),
    }
    for loss, (losses, gradient) in approximate.items():
        at_negatives = (targets == 0).double()
        difference = ((gradient - exact[loss][1]) * at_negatives).abs().sum()
        error = (difference / (exact[loss][1] * at_negatives).abs().sum()).item()
        assert 1e-4 < error < 0.2, loss
        assert losses.tolist() == pytest.approx(exact[loss][0].tolist(), rel=0.05), loss


def test_both_kinds_of_buckets_are_the_same():
    positives, negatives = (x.float() for x in scores("random", 11, 300))
    sorted_, searched = bucketed.Buckets(positives, negatives), bucketed.SearchedBuckets(positives, negatives)
    assert sorted_.sizes.tolist() == searched.sizes.tolist()
    assert sorted_.means.tolist() == pytest.approx(searched.means.tolist(), abs=1e-5)
    shares = torch.rand(12)
    assert sorted_.to_negatives(shares).tolist() == searched.to_negatives(shares).tolist()


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_compiled_products_before_compilation(delta):
    positives, negatives = (x.float() for x in scores("random", 11, 300))
    weights = torch.rand(11)
    expected = vectorized.BLOCKS.count(positives, negatives, delta)
    assert compiled.count(positives, negatives, delta).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    expected = vectorized.BLOCKS.transport(positives, negatives, weights, delta)
    actual = compiled.transport(positives, negatives, weights, delta)
    assert actual.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)

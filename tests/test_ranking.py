"""Ranking: count and transport, the losses made of them against the dense reference, and the identities they obey."""

import math
import os
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from cases import INTERPRETED, KINDS, PRECISE_DTYPES, assert_close, batch, dense as shuffled, scores
from hypothesis import given, settings, strategies as st
from ranking_losses import LOSSES, evaluate, oracle
from torch.profiler import profile

import triton_rankloss as rankloss
from triton_rankloss.reference import dense, sorted as sorted_engine

engines = pytest.mark.parametrize("engine", [dense, sorted_engine], ids=["dense", "sorted"])
of_the_reference = pytest.mark.skipif(INTERPRETED, reason="the reference alone, which the first pass has tested")
every_loss = pytest.mark.parametrize("name", LOSSES)
EXAMPLES = 10 if INTERPRETED else 40


# Count and transport


@of_the_reference
@engines
def test_count_and_transport_by_hand(engine):
    # delta = 1: H(x) = (x + 1) / 2 between -1 and 1. n - p = -2, -1, -0.5, 0, 1, 3 gives 0, 0, 1/4, 1/2, 1, 1.
    positives, negatives = torch.zeros(1).double(), torch.tensor([-2, -1, -0.5, 0, 1, 3]).double()
    h = [0, 0, 1 / 4, 1 / 2, 1, 1]
    assert_close(dense.step(negatives, 1.0), h)
    assert_close(engine.count(negatives, positives, 1.0), [sum(h)])
    assert_close(engine.transport(negatives, positives, torch.tensor([4.0]).double(), 1.0), [4 * x for x in h])
    # delta = 0: at or above. Positives 0 and 2 with weights 1 and 10; masses 1 to 6.
    positives = torch.tensor([0, 2]).double()
    assert_close(engine.count(negatives, positives, 0.0), [3, 1])
    assert_close(engine.count(negatives, positives, 0.0, torch.arange(1, 7).double()), [4 + 5 + 6, 6])
    assert_close(engine.transport(negatives, positives, torch.tensor([1, 10]).double(), 0.0), [0, 0, 0, 1, 1, 11])


@of_the_reference
@pytest.mark.parametrize("delta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", [*KINDS, "infinite"])
def test_sorted_is_dense(kind, delta):
    positives, negatives = scores("random" if kind == "infinite" else kind, 23, 211)
    if kind == "infinite":  # what the losses make of infinities
        positives[:2] = negatives[:5] = 2.0**40
        positives[2:4] = negatives[5:9] = -(2.0**40)
        delta = max(delta, 0.5) if delta > 0 else delta  # 2**40 is exact to 2**-12
    masses, weights = torch.rand(211).double(), torch.rand(23).double()
    for m in (None, masses):
        expected = dense.count(negatives, positives, delta, m)
        assert_close(sorted_engine.count(negatives, positives, delta, m), expected, times=10, atol=1e-12, each=True)
    for candidates in (negatives, positives, negatives[:1]):
        expected = dense.transport(candidates, positives, weights, delta)
        carried = sorted_engine.transport(candidates, positives, weights, delta)
        assert_close(carried, expected, times=10, atol=1e-12, each=True)


@of_the_reference
@pytest.mark.parametrize("num_positives", [1, 3])
def test_one_kink(num_positives):
    positives, negatives = torch.zeros(num_positives).double(), torch.arange(-20, 21).double()
    assert_close(sorted_engine.count(negatives, positives, 0.0), torch.full_like(positives, 21))
    expected = num_positives * (negatives >= 0).double()
    assert_close(sorted_engine.transport(negatives, positives, torch.ones_like(positives), 0.0), expected)


@of_the_reference
def test_count_keeps_its_digits_when_scores_are_far_from_the_kinks():
    # One negative at the positive itself counts 1/2, whatever lies a million deltas away on either side.
    positives = torch.tensor([0.0, -1e6, 1e6], dtype=torch.float64)
    negatives = torch.tensor([0.0] + [-2e6] * 500 + [2e6] * 500, dtype=torch.float64)
    assert_close(sorted_engine.count(negatives, positives, 1.0), [500.5, 501.0, 500.0], times=0.1, each=True)
    # Where float32 has no number between p - delta and p + delta.
    positives = torch.tensor([1e9], dtype=torch.float64)
    candidates = positives + torch.tensor([-64.0, 0, 0, 64])
    assert sorted_engine.count(candidates, positives, 1.0).tolist() == [0.5 + 0.5 + 1]
    assert sorted_engine.transport(candidates, positives, positives.new_ones(1), 1.0).tolist() == [0, 0.5, 0.5, 1]


@of_the_reference
@engines
@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=8),
    st.lists(st.floats(-50, 50), min_size=0, max_size=12),
    st.sampled_from([0.0, 0.25, 0.3, 1.0, 7.0]),
)
def test_count_and_transport_are_transposes(engine, p, n, delta):
    """sum_i w_i b_i(m) = sum_j m_j g_j(w), for every w and m: both are the matrix H, applied from its two sides."""
    positives, negatives = torch.tensor(p, dtype=torch.float64), torch.tensor(n, dtype=torch.float64)
    weights = torch.linspace(0.1, 1, len(p), dtype=torch.float64)
    masses = torch.linspace(1, 2, len(n), dtype=torch.float64)
    from_count = (weights * engine.count(negatives, positives, delta, masses)).sum()
    from_transport = (masses * engine.transport(negatives, positives, weights, delta)).sum()
    assert_close(from_count, from_transport, times=1000, atol=1e-9)


@of_the_reference
@engines
@pytest.mark.parametrize("delta", [0.0, 1.0])
@pytest.mark.parametrize("spread", [0.01, 3.0])  # all in one bin, or in many
def test_nan_counts_for_all(engine, spread, delta):
    positives, negatives = spread * torch.randn(5).double(), spread * torch.randn(100).double()
    expected = dense.transport(negatives, positives, positives.new_ones(5), delta)
    negatives[7] = expected[7] = torch.nan
    assert engine.count(negatives, positives, delta).isnan().all()
    assert_close(engine.transport(negatives, positives, positives.new_ones(5), delta), expected)


def exactly(candidates, positives, delta):
    """H(n_j - p_i), [P][N], in fractions."""

    def step(x):
        return Fraction(x >= 0) if delta == 0 else min(max(x / (2 * Fraction(delta)) + Fraction(1, 2), 0), 1)

    return [[step(Fraction(n) - Fraction(p)) for n in candidates] for p in positives]


@of_the_reference
@engines
@pytest.mark.parametrize("delta", [0.0, 5e-324, 1e-308, 1e-20, 1e-6, 1e-3, 0.1, 0.3, 1.0, 7.0, 1e300])
@pytest.mark.parametrize("origin", [0.0, 1.0, 1e7, 2.0**40, -(2.0**40)])
def test_count_and_transport_are_exact_where_kinks_are_rounded(engine, origin, delta):
    ulp = math.nextafter(origin, math.inf) - origin
    for spacing in (ulp, delta / 2, delta, 1.0):
        positives = [origin + k * spacing for k in (0, 2, 1, -1, 0)]
        candidates = [origin + k * spacing for k in (0, 1, -1, 3, 2, -4, 0)]
        h = exactly(candidates, positives, delta)
        p, n = (torch.tensor(values, dtype=torch.float64) for values in (positives, candidates))
        assert_close(engine.count(n, p, delta), [float(sum(row)) for row in h], atol=1e-14)
        carried = [float(sum(row[j] for row in h)) for j in range(len(candidates))]
        assert_close(engine.transport(n, p, torch.ones_like(p), delta), carried, atol=1e-14)


@of_the_reference
@engines
def test_leading_dimensions_are_scopes(engine):
    for positives, negatives in (
        (torch.randn(3, 7), torch.randn(3, 40)),
        (torch.zeros(3, 7), 0.1 * torch.randn(3, 40)),
    ):
        positives, negatives, weights = positives.double(), negatives.double(), torch.rand(3, 7).double()
        for delta in (0.0, 0.5):
            scopes = list(zip(positives, negatives, weights, strict=True))
            above = torch.stack([dense.count(n, p, delta) for p, n, _ in scopes])
            assert_close(engine.count(negatives, positives, delta), above)
            carried = torch.stack([dense.transport(n, p, w, delta) for p, n, w in scopes])
            assert_close(engine.transport(negatives, positives, weights, delta), carried, atol=1e-14)


# The losses


@every_loss
@pytest.mark.parametrize("dtype", PRECISE_DTYPES)
@pytest.mark.parametrize(
    "logits",
    [
        [math.inf, math.inf, math.inf, 0, 1],
        [-math.inf, -math.inf, -math.inf, 25, 30, 40],
        [math.inf, -math.inf, math.inf, -math.inf, math.inf, -math.inf, 0, 1, 3],
        [1e7, 1e7 + 1, 1e7, 1e7 + 1, 1e7 - 1, 1e7 + 2],
        [0, 20, 0, 20, 1, 19.999, 20.001],
    ],
    ids=str,
)
def test_ties_count_one_half_whatever_rounding_makes_of_kinks(name, logits, dtype, device):
    logits = torch.tensor(logits, dtype=dtype)
    targets = torch.zeros_like(logits)
    targets[:2] = 1
    values = torch.tensor([0.5, 0.75], dtype=torch.float64)
    for delta in (0.0, 1e-308, 1e-30, 1e-6, 1e-3, 0.1, 0.3):
        losses, gradients = evaluate(name, *(x.to(device) for x in (logits, targets, values)), delta=delta)
        finite = logits.double().clamp(-(2.0**40), 2.0**40)
        expected, expected_gradients = oracle(name, finite, targets, values, delta=delta)
        for actual, wanted in zip((*losses, *gradients), (*expected, *expected_gradients), strict=True):
            assert_close(actual, wanted, dtype, atol=1e-13 if dtype == torch.float64 else 1e-7)


@every_loss
@pytest.mark.parametrize("regime", ["spread", "narrow", "few relevant"])
def test_images_with_their_own_numbers_of_positives(name, regime, device):
    labels = torch.full((9, 30), 3)
    sizes = [0, 1, 2, 3, 0, 4, 20, 8, 1]
    for image, size in enumerate(sizes):
        labels[image, torch.randperm(30)[:size]] = torch.randint(0, 3, (size,))
    labels[1, labels[1] == 3] = -1  # nothing but a positive and its other channels
    logits, values = torch.randn(9, 30, 3, dtype=torch.float64), torch.rand(sum(sizes), dtype=torch.float64)
    if regime == "narrow":
        logits *= 0.01
    elif regime == "few relevant":
        logits[labels == 3] -= 6
    losses, gradients = evaluate(name, *(x.to(device) for x in (logits, labels, values)), delta=0.5, per_image=True)
    expected, expected_gradients = oracle(name, logits, labels, values, delta=0.5, per_image=True)
    for actual, wanted in zip((*losses, *gradients), (*expected, *expected_gradients), strict=True):
        assert_close(actual, wanted, times=10, atol=1e-13)


@every_loss
@pytest.mark.parametrize(("image", "negative"), [(0, 2), (1, 7), (2, 19)])
def test_nan_stays_in_its_image(name, image, negative, device):
    logits, targets = torch.randn(3, 20, dtype=torch.float64), torch.zeros(3, 20)
    targets[:, :2] = targets[1, 2] = 1
    values = torch.rand(7, dtype=torch.float64)
    _, (expected, *_) = evaluate(name, *(x.to(device) for x in (logits, targets, values)), per_image=True)
    logits[image, negative] = torch.nan
    losses, (gradient, *_) = evaluate(name, *(x.to(device) for x in (logits, targets, values)), per_image=True)
    assert losses[0].isnan()
    assert gradient[image, :2].isnan().all()
    others = torch.arange(3) != image
    assert_close(gradient[others], expected[others])


@every_loss
def test_images_without_negatives(name, device):
    logits, targets = torch.tensor([[3.0, 3.0], [1.0, 2.0], [0.0, 5.0]], device=device), torch.ones(3, 2, device=device)
    losses, (gradient, *_) = evaluate(name, logits, targets, torch.zeros(6, device=device), per_image=True)
    assert sum(losses) == 0
    assert not gradient.any()
    logits[1, 0] = torch.nan  # reaches every positive of its image, as where it has negatives
    _, (gradient, *_) = evaluate(name, logits, targets, torch.zeros(6, device=device), per_image=True)
    assert torch.equal(gradient.isnan().any(1).cpu(), torch.tensor([False, True, False]))
    assert gradient[1].isnan().all()


@of_the_reference
@pytest.mark.parametrize("name", [*LOSSES, "dr"])
def test_images_cost_no_loop(name):
    """As many operations are called for 64 images as for 8 that differ as much in their numbers of positives."""

    def num_operations(num_images):
        logits, targets = torch.randn(num_images, 50), torch.zeros(num_images, 50)
        for image in range(num_images):
            targets[image, : image % 8] = 1
        values = torch.rand(int(targets.sum()))
        with profile() as operations:
            if name == "dr":
                rankloss.dr_loss(logits.requires_grad_(), targets, per_image=True).backward()
            else:
                evaluate(name, logits, targets, values, per_image=True)
        return sum(event.count for event in operations.key_averages())

    num_operations(2)
    assert num_operations(64) < 1.1 * num_operations(8)


@pytest.mark.parametrize("blocks", ["whole", "small blocks"])
@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in LOSSES), ("ap", {"interpolate": False})], ids=str
)
def test_losses_are_those_of_the_dense_reference(name, options, kind, delta, blocks, device, monkeypatch):
    if blocks == "small blocks":
        if INTERPRETED or device.type != "cpu":
            pytest.skip("the reference works in blocks; those of the kernels are in test_kernels.py")
        monkeypatch.setattr("triton_rankloss.ranking.LOGITS_AT_ONCE", 16)
        monkeypatch.setattr("triton_rankloss.ranking.NEGATIVES_AT_ONCE", 5)
    logits, labels = batch(kind, 1, 40, 3, 11)
    logits[labels < 0] = torch.nan  # ignored
    values = (torch.rand(11, dtype=torch.float64) * 8).ceil() / 8  # some are equal
    losses, gradients = evaluate(name, *(x.to(device) for x in (logits, labels, values)), delta=delta, **options)
    expected, expected_gradients = oracle(name, logits, labels, values, delta=delta, **options)
    for actual, wanted in zip((*losses, *gradients), (*expected, *expected_gradients), strict=True):
        assert_close(actual, wanted, times=10, atol=1e-13)


@every_loss
@pytest.mark.parametrize("num_classes", [1, 3])
def test_targets_are_looked_up_for_the_negatives_that_matter(name, num_classes, device):
    """Of few negatives in sight of a positive; with one class, labels are as many as logits, and mean the opposite."""
    logits, labels = batch("random", 1, 200, num_classes, 5)
    logits = logits - 6.0 * (labels == num_classes).unsqueeze(-1)
    values = torch.rand(5, dtype=torch.float64)
    losses, gradients = evaluate(name, *(x.to(device) for x in (logits, labels, values)), delta=0.5)
    expected, expected_gradients = oracle(name, logits, labels, values, delta=0.5)
    for actual, wanted in zip((*losses, *gradients), (*expected, *expected_gradients), strict=True):
        assert_close(actual, wanted, times=10, atol=1e-13)


@every_loss
def test_more_positives_than_their_bound_make_all_gradients_nan(name, device):
    logits, labels = batch("random", 2, 37, 3, 11)
    logits, labels = logits.to(device), labels.clamp(min=0).to(device)
    values = torch.rand(int((labels < 3).sum()), device=device)
    losses, gradients = evaluate(name, logits, labels, values, max_positives=7)
    assert all(result.isnan().all() for result in (*losses, gradients[0]))


@every_loss
@pytest.mark.parametrize("max_positives", [None, 7])
def test_no_anchors(name, max_positives, device):
    logits, labels = torch.zeros(2, 0, 5, device=device), torch.zeros(2, 0, dtype=torch.long, device=device)
    losses, gradients = evaluate(name, logits, labels, torch.zeros(0, device=device), max_positives=max_positives)
    assert all(loss == 0 for loss in losses)
    assert gradients[0].shape == logits.shape


def test_a_positive_at_minus_infinity(device):
    # All three negatives are above it: b = 3, a = 1, error 3/4, which each carries a third of.
    logits = torch.tensor([-torch.inf, 25.0, 30.0, 40.0], device=device).requires_grad_()
    rankloss.ap_loss(logits, torch.tensor([1.0, 0, 0, 0], device=device)).backward()
    assert_close(logits.grad, torch.tensor([-0.75, 0.25, 0.25, 0.25]))


@pytest.mark.parametrize(("delta", "error"), [(0.0, 2 / 4), (1.0, 1.5 / 3.5)])
def test_ties_at_minus_infinity(delta, error, device):
    # Positives at -inf and 1, negatives at -inf and 0. The lower: a = 2, b = 2 (delta = 0), or 1.5 with H(0) = 1/2.
    # The upper: b = 0. The loss is the mean of the errors b / (a + b).
    logits = torch.tensor([-torch.inf, -torch.inf, 0.0, 1.0], device=device)
    targets = torch.tensor([1.0, 0, 0, 1], device=device)
    assert_close(rankloss.ap_loss(logits, targets, delta=delta, interpolate=False), torch.tensor(error / 2))


def test_one_positive_and_a_negative_of_its_score(device):
    # H = 1/2. AP and aLRP: 1 - 1 / 1.5 = 1/3; RS: 0.5 / (0.5 + 0.5) = 1/2.
    logits, targets = torch.ones(2, dtype=torch.float64, device=device), torch.tensor([1, 0], device=device)
    for name, expected in {"ap": 1 / 3, "alrp": 1 / 3, "rank_sort": 1 / 2}.items():
        losses, gradients = evaluate(name, logits, targets, logits[:1] - 1)
        assert_close(sum(losses), expected)
        assert_close(gradients[0], [-expected, expected])


@every_loss
def test_a_perfect_ranking_without_negatives(name, device):
    logits, targets = torch.tensor([3.0, 3.0, -1.0], device=device), torch.tensor([1, 1, -1], device=device)
    losses, gradients = evaluate(name, logits, targets, torch.zeros(2, device=device))
    assert sum(losses) == 0
    assert not gradients[0].any()
    assert name == "alrp" or not gradients[-1].any()


@every_loss
def test_infinite_positives_and_negatives(name, device):
    logits = torch.tensor([torch.inf, 0.5, -torch.inf, torch.inf, -torch.inf, 0.0], device=device)
    targets = torch.tensor([1, 1, 1, 0, 0, 0], device=device)
    values = torch.tensor([0, 0.37, 0.74], device=device)
    found = evaluate(name, logits, targets, values)
    large = evaluate(name, logits.clamp(-1e5, 1e5), targets, values)
    for actual, wanted in zip((*found[0], *found[1]), (*large[0], *large[1])):
        assert_close(actual, wanted)


@every_loss
def test_float16_with_many_false_positives(name, device, interpreted):
    # 200 k negatives above every positive: in half precision their number overflows to infinity (and 70 k do too).
    if interpreted and name != "rank_sort":
        pytest.skip("slow there, and the losses share a count: Rank & Sort does most with it")
    num_negatives = 70_000 if interpreted else 200_000
    logits = torch.cat([torch.randn(20), 8 + torch.randn(num_negatives)]).to(device, torch.float16).requires_grad_()
    targets = torch.zeros(num_negatives + 20, device=device)
    targets[:20] = 1
    total = sum(LOSSES[name](logits, targets, torch.rand(20, device=device)))
    (2.0**16 * total).backward()  # the scale that mixed precision starts from
    assert total.isfinite()
    assert logits.grad.isfinite().all()
    of_positives, of_negatives = logits.grad.double().split([20, num_negatives])
    assert_close(of_negatives.sum(), -of_positives.sum(), torch.float16, times=10)


# Identities


@every_loss
@settings(deadline=None, max_examples=EXAMPLES)
@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=7),
    st.lists(st.integers(-40, 40), min_size=1, max_size=9),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(-100, 100),
)
def test_identities(name, p, n, delta, shift):
    """The loss lies in [0, 1], what moves logits sums to zero, and a constant added to all scores changes nothing."""
    logits = torch.tensor([*p, *n], dtype=torch.float64) / 8
    targets = torch.tensor([1] * len(p) + [0] * len(n))
    values = torch.linspace(0, 1, len(p), dtype=torch.float64)
    losses, gradients = evaluate(name, logits, targets, values, delta=delta)
    assert 0 <= losses[0] <= 1
    for gradient in gradients[: 1 if name == "alrp" else 2]:
        assert_close(gradient.sum(), 0, atol=1e-12)
    shifted, shifted_gradients = evaluate(name, logits + shift, targets, values, delta=delta)
    for actual, wanted in zip((*shifted, *shifted_gradients), (*losses, *gradients)):
        assert_close(actual, wanted, atol=1e-12)


@every_loss
def test_a_small_delta_tends_to_the_hard_step(name, device):
    logits, targets = (x.to(device) for x in shuffled(*scores("random", 9, 50)))
    values = torch.rand(9, dtype=torch.float64, device=device)
    # The step of a positive at itself stays 1/2, which Rank & Sort counts; 1 where delta is 0.
    parts = slice(0, 0 if name == "rank_sort" else 2)
    hard, hard_gradients = evaluate(name, logits, targets, values, delta=0)
    soft, soft_gradients = evaluate(name, logits, targets, values, delta=1e-7)
    for actual, wanted in zip((*soft[parts], *soft_gradients[parts]), (*hard[parts], *hard_gradients[parts])):
        assert_close(actual, wanted, times=1000)


@every_loss
def test_duplicated_negatives_weigh_two(name, device):
    # b_i doubles, all that positives count among themselves stays.
    positives, negatives = scores("random", 6, 30)
    logits, targets = shuffled(positives, torch.cat([negatives, negatives]))
    values = torch.zeros(6, dtype=torch.float64, device=device)
    options = {"interpolate": False} if name == "ap" else {}
    losses, _ = evaluate(name, logits.to(device), targets.to(device), values, delta=1.0, **options)
    among = dense.count(positives, positives, 1.0) + (0 if name == "rank_sort" else 0.5)
    above = dense.count(negatives, positives, 1.0, torch.full((30,), 2.0, dtype=torch.float64))
    assert_close(losses[0], (above / (among + above)).mean())


# Sizes


SCRIPT = """
import resource, sys, torch
from ranking_losses import LOSSES

torch.set_num_threads(1)

def run(num_positives):
    logits = torch.randn(2 * num_positives, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = torch.rand(num_positives, generator=torch.Generator().manual_seed(1))
    loss = sum(LOSSES[sys.argv[1]](logits, torch.arange(2 * num_positives) % 2, values))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and logits.grad.abs().sum() > 0

run(10)  # what the first call loads is not what this is about
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(int(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
MIB = 2**20


@of_the_reference
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux reports it")
@pytest.mark.parametrize(
    # A |P| x |N| matrix in float32 would take 85 GiB; |P| x |P| for Rank & Sort, whose time is quadratic, 244 MiB.
    ("name", "num_positives", "limit"),
    [("ap", 150_000, 256 * MIB), ("alrp", 150_000, 256 * MIB), ("rank_sort", 8_000, 64 * MIB)],
)
def test_memory_is_linear(name, num_positives, limit):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(num_positives)],
        capture_output=True,
        text=True,
        cwd=os.path.dirname(__file__),
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < limit


def test_an_image_of_edges(device, interpreted):
    """Dense targets [B, H, W], each image ranked by itself, the uncertain pixels ignored."""
    height, width = (8, 8) if interpreted else (120, 160)
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(-1, 2, (2, height, width), generator=generator).to(device)
    logits = torch.randn(2, height, width, generator=generator).to(device)
    loss = rankloss.ap_loss(logits, edges, per_image=True)
    assert_close(loss, torch.stack([rankloss.ap_loss(*image) for image in zip(logits, edges)]).mean())

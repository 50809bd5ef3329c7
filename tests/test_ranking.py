"""The engine: count and transport against double loops over H, in every kind of score distribution."""

import literal
import pytest
import torch
from cases import KINDS, relative_error, scores
from hypothesis import given, settings, strategies as st
from literal import step

import triton_rankloss as trl
from triton_rankloss.reference import blocks, ranking
from triton_rankloss.reference.kinks import Kinks


def literal_count(candidates, positives, delta, masses=None):
    masses = [1.0] * len(candidates) if masses is None else masses
    return [sum(m * step(n - p, delta) for n, m in zip(candidates, masses, strict=True)) for p in positives]


def literal_transport(candidates, positives, weights, delta):
    return [sum(w * step(n - p, delta) for p, w in zip(positives, weights, strict=True)) for n in candidates]


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_count_is_the_sum_over_pairs(kind, delta):
    positives, negatives = scores(kind, 23, 211)
    masses = torch.rand(211, dtype=torch.float64)
    for m in (None, masses):
        expected = literal_count(negatives.tolist(), positives.tolist(), delta, None if m is None else m.tolist())
        counted = ranking.count(negatives, positives, delta, m)
        torch.testing.assert_close(counted, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("delta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_transport_is_the_sum_over_pairs(kind, delta):
    positives, negatives = scores(kind, 23, 211)
    weights = torch.rand(23, dtype=torch.float64)
    expected = literal_transport(negatives.tolist(), positives.tolist(), weights.tolist(), delta)
    carried = ranking.transport(negatives, positives, weights, delta)
    torch.testing.assert_close(carried, torch.tensor(expected, dtype=torch.float64), rtol=1e-11, atol=1e-12)


def test_count_keeps_its_digits_when_scores_are_far_from_the_kinks():
    # One negative at the positive itself counts 1/2, whatever lies a million deltas away on either side.
    positives = torch.tensor([0.0, -1e6, 1e6], dtype=torch.float64)
    negatives = torch.tensor([0.0] + [-2e6] * 500 + [2e6] * 500, dtype=torch.float64)
    counted = ranking.count(negatives, positives, 1.0)
    assert counted.tolist() == pytest.approx([500.5, 501.0, 500.0], rel=1e-13)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=8),
    st.lists(st.floats(-50, 50), min_size=0, max_size=12),
    st.sampled_from([0.0, 0.25, 1.0, 7.0]),
)
def test_count_and_transport_are_transposes(p, n, delta):
    """sum_i w_i b_i(m) = sum_j m_j g_j(w), for every w and m: both are the matrix H, applied from its two sides."""
    positives, negatives = torch.tensor(p, dtype=torch.float64), torch.tensor(n, dtype=torch.float64)
    weights = torch.linspace(0.1, 1, len(p), dtype=torch.float64)
    masses = torch.linspace(1, 2, len(n), dtype=torch.float64)
    from_count = (weights * ranking.count(negatives, positives, delta, masses)).sum()
    from_transport = (masses * ranking.transport(negatives, positives, weights, delta)).sum()
    assert from_count.item() == pytest.approx(from_transport.item(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bins_agree_with_a_search(dtype):
    kinks = torch.cat([torch.randn(50), torch.tensor([3.0] * 4), 1e6 * torch.randn(3)]).to(dtype).sort().values
    candidates = torch.cat([torch.randn(2000).to(dtype), kinks, torch.tensor([-torch.inf, torch.inf], dtype=dtype)])
    expected = torch.bucketize(candidates, kinks, right=True)
    assert torch.equal(Kinks(kinks, 0.0, dtype).bins(candidates).long(), expected)


def test_float16_scores_are_counted_exactly():
    positives, negatives = scores("random", 40, 900)
    half = negatives.half()
    expected = ranking.count(half.double(), positives, 1.0)
    assert relative_error(ranking.count(half.float(), positives, 1.0), expected) < 1e-12


@pytest.mark.parametrize("delta", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["dense", "labels"])
def test_blocks_of_any_kind_add_up_to_ap_loss(form, kind, delta, monkeypatch):
    # Blocks of 16 logits and grids of 12 cells: narrow blocks with one bin, mixed ones, masked and picked ones.
    monkeypatch.setattr(blocks, "BLOCK", 16)
    monkeypatch.setattr(Kinks, "_num_cells", 12)
    num_anchors, num_classes = 40, 4
    labels = torch.full((num_anchors,), num_classes)
    labels[::5] = torch.arange(8) % num_classes
    labels[7] = labels[23] = -1
    positives, others = scores(kind, 8, num_anchors * num_classes)
    logits = others.view(num_anchors, num_classes)
    is_positive = torch.nn.functional.one_hot(labels.clamp(min=0), num_classes + 1)[:, :num_classes].bool()
    is_positive[labels < 0] = False
    logits[is_positive] = positives
    logits[7] = torch.nan  # ignored
    targets = labels
    if form == "dense":
        targets = is_positive.double()
        targets[labels < 0] = -1
    is_negative = ~is_positive & (labels >= 0).unsqueeze(1)
    expected, to_positives, to_negatives = literal.ap(positives.tolist(), logits[is_negative].tolist(), delta, True)
    logits.requires_grad_()
    loss = trl.ap_loss(logits, targets, delta=delta)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
    assert logits.grad[is_positive].tolist() == pytest.approx(to_positives, rel=1e-10, abs=1e-12)
    assert logits.grad[is_negative].tolist() == pytest.approx(to_negatives, rel=1e-10, abs=1e-12)
    assert logits.grad[labels < 0].abs().sum() == 0


def test_offsets_from_kinks_that_float32_cannot_hold():
    # 2 delta is far below the spacing of float32 at 1e9, 64: kinks round to the positive itself.
    positives = torch.tensor([1e9], dtype=torch.float64)
    candidates = torch.tensor([1e9 - 64, 1e9, 1e9, 1e9 + 64])
    assert ranking.count(candidates, positives, 1.0).tolist() == [0.5 + 0.5 + 1]
    assert ranking.transport(candidates, positives, positives.new_ones(1), 1.0).tolist() == [0, 0.5, 0.5, 1]


@pytest.mark.parametrize("delta", [0.0, 1.0])
@pytest.mark.parametrize("num_cells", [12, 10_000])  # looked up in a table, or searched for
@pytest.mark.parametrize("spread", [0.01, 3.0])  # all in one bin, or in many
def test_nan_counts_unless_it_is_masked(spread, num_cells, delta, monkeypatch):
    monkeypatch.setattr(Kinks, "_num_cells", num_cells)
    positives, negatives = spread * torch.randn(5).double(), spread * torch.randn(100).double()
    negatives[7] = torch.nan
    mask = ~negatives.isnan()
    for masks in ({}, {"mask": torch.ones(100, dtype=torch.bool)}):
        counted = ranking.Count(positives, delta, torch.float64)
        counted.add(negatives, **masks)
        assert counted.above().isnan().all()
    counted = ranking.Count(positives, delta, torch.float64)
    counted.add(negatives, mask=mask)
    expected = literal_count(negatives[mask].tolist(), positives.tolist(), delta)
    assert counted.above().tolist() == pytest.approx(expected, rel=1e-12)

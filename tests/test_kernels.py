"""The kernels of the ranking losses at block sizes so small that every loop, tile and branch is reached.

The same cases as elsewhere, with tiles of 4 positives and blocks of 16 candidates; buffers start out as NaN, so that an
entry that no program owns shows. Without Triton's interpreter these would only repeat the other tests.
"""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from cases import INTERPRETED, KINDS, assert_close, assert_equal, batch
from ranking_losses import LOSSES, evaluate, oracle

import triton_rankloss as rankloss

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="needs the kernels on the CPU: TRITON_INTERPRET=1")

SMALL = {
    "listing": {"TARGETS_BLOCK": 16},
    "ranking.positives": {"TILE": 4, "SORT_TILE": 2, "SORT_OTHERS": 4},
    "ranking.kinks": {"TILE": 4, "CELLS": 2},
    "ranking.bins": {
        "BLOCK": 16,
        "MAX_BLOCKS": 3,
        "MIN_PROGRAMS": 2,
        "MAX_IN_COPY": 64,
        "CELLS": 2,
        "SUM_BLOCK": 4,
        "SUM_ROWS": 2,
        "SCAN_BLOCK": 4,
    },
    "ranking.lists": {"CANDIDATES_BLOCK": 16, "MAX_LISTS": 3},
    "ranking.pairs": {"PAIRS_BLOCK": 8, "POSITIVES_BLOCK": 4, "POSITIVES_BLOCK_FLOAT64": 4, "MIN_PROGRAMS": 2},
    "ranking.finish": {"BLOCK": 4},
    "ranking.ap": {"BLOCK": 4},
    "ranking.alrp": {"TILE": 4},
    "ranking.rank_sort": {"TILE": 4},
    "ranking.transport": {"BLOCK": 16, "BLOCKS_AT_ONCE": 2, "TILE": 4, "CELLS": 2},
}
FORMS = {"bins": 0, "pairs": 100}  # of count: up to how many positives it compares pairs
CASES = [*((name, "bins") for name in LOSSES), ("ap", "pairs")]


@pytest.fixture(autouse=True)
def small_blocks_and_poisoned_buffers(monkeypatch):
    modules = [import_module(f"triton_rankloss.kernels.{module}") for module in SMALL]  # all, before a constant changes
    for module, constants in zip(modules, SMALL.values()):
        for name, value in constants.items():
            monkeypatch.setattr(module, name, value)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("kind", "per_image"), [*((kind, False) for kind in KINDS), ("random", True), ("ties", True)])
@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize(("name", "form"), CASES)
def test_every_branch(name, form, kind, delta, per_image, monkeypatch):
    monkeypatch.setattr("triton_rankloss.kernels.ranking.count.MAX_POSITIVES_OF_PAIRS", FORMS[form])
    logits, labels = batch(kind, 2, 37, 3, 11)
    values = torch.rand(int(((labels >= 0) & (labels < 3)).sum()), dtype=torch.float64)
    options = {"delta": delta, "per_image": per_image}
    losses, gradients = evaluate(name, logits, labels, values, **options)
    expected, expected_gradients = oracle(name, logits, labels, values, **options)
    for actual, wanted in zip((*losses, *gradients), (*expected, *expected_gradients), strict=True):
        assert_close(actual, wanted, times=100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["random", "init", "huge"])
@pytest.mark.parametrize("form", FORMS)
def test_low_precision(form, kind, dtype, monkeypatch):
    monkeypatch.setattr("triton_rankloss.kernels.ranking.count.MAX_POSITIVES_OF_PAIRS", FORMS[form])
    logits, labels = batch(kind, 1, 60, 3, 9)
    logits = logits.to(dtype)
    (loss,), (gradient,) = evaluate("ap", logits, labels, logits[:0])
    (expected,), (expected_gradient,) = oracle("ap", logits, labels, logits[:0])
    assert_close(loss, expected)
    assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("form", ["bins", "pairs"])
def test_benchmarks_reach_both_forms(form, monkeypatch):
    sys.path.append(str(Path(__file__).parents[1]))
    from bench.peers.registry import FORMS, of_form

    count = import_module("triton_rankloss.kernels.ranking.count")
    called = []
    for name in ("bins", "pairs"):
        module = getattr(count, name)
        monkeypatch.setattr(
            module, "count", lambda *_, name=name, real=module.count: (called.append(name), real(*_))[1]
        )
    logits, labels = batch("random", 1, 37, 3, 11)
    loss = of_form("ap", FORMS[f"ours-{form}"])(logits.requires_grad_(), {"targets": labels})
    assert called == [form]
    (expected,), _ = oracle("ap", logits.detach(), labels, logits[:0].detach())
    assert_close(loss.detach(), expected)


def test_results_do_not_depend_on_what_the_buffers_held():
    logits, labels = batch("random", 2, 37, 3, 11)
    results = []
    for poison in (True, False):
        torch.use_deterministic_algorithms(poison)
        leaf = logits.float().requires_grad_()
        loss = rankloss.ap_loss(leaf, labels, per_image=True, max_positives=40)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    assert_equal(*results)

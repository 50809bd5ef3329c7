"""The kernels of the ranking losses at block sizes so small that every loop, tile and branch is reached.

The same cases as elsewhere, with tiles of 4 positives and blocks of 16 candidates; buffers start out as NaN, so that an
entry that no program owns shows. Without Triton's interpreter these would only repeat the other tests.
"""

import os

import pytest
import torch
from cases import KINDS, assert_close, assert_equal, batch
from ranking_losses import LOSSES, evaluate, oracle

import triton_rankloss as rankloss

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs the kernels on the CPU: TRITON_INTERPRET=1"
)

SMALL = {
    "candidates": {"TARGETS_BLOCK": 16},
    "ranking.lists": {"CANDIDATES_BLOCK": 16, "MAX_LISTS": 3},
    "ranking.count": {
        "PAIRS_BLOCK": 8,
        "POSITIVES_BLOCK": 4,
        "POSITIVES_BLOCK_FLOAT64": 4,
        "MIN_PROGRAMS": 2,
    },
    "ranking.transport": {"CANDIDATES_BLOCK": 16, "KINKS_BLOCK": 4},
    "ranking.positives": {"SUM_BLOCK": 4},
    "ranking.ap": {"TILE": 4},
    "ranking.alrp": {"TILE": 4},
    "ranking.rank_sort": {"TILE": 4},
}


@pytest.fixture(autouse=True)
def small_blocks_and_poisoned_buffers(monkeypatch):
    for module, constants in SMALL.items():
        for name, value in constants.items():
            monkeypatch.setattr(f"triton_rankloss.kernels.{module}.{name}", value)
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_branch(name, kind, delta, per_image):
    logits, labels = batch(kind, 2, 37, 3, 11)
    values = torch.rand(int(((labels >= 0) & (labels < 3)).sum()), dtype=torch.float64)
    options = {"delta": delta, "per_image": per_image}
    losses, gradients = evaluate(name, logits, labels, values, **options)
    expected, expected_gradients = oracle(name, logits, labels, values, **options)
    for actual, wanted in zip((*losses, *gradients), (*expected, *expected_gradients), strict=True):
        assert_close(actual, wanted, times=100)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["random", "init", "huge"])
def test_low_precision_logits_are_listed_in_their_dtype(kind, dtype):
    logits, labels = batch(kind, 1, 60, 3, 9)
    logits = logits.to(dtype)
    (loss,), (gradient,) = evaluate("ap", logits, labels, logits[:0])
    (expected,), (expected_gradient,) = oracle("ap", logits, labels, logits[:0])
    assert_close(loss, expected)
    assert_close(gradient, expected_gradient)


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

"""The kernels of the ranking losses at block sizes so small that every loop, tile and branch is reached.

The same cases as elsewhere, with tiles of 4 positives and blocks of 16 candidates; buffers start out as NaN, so that an
entry that no program owns shows. Without Triton's interpreter these would only repeat the other tests.
"""

import os

import pytest
import torch
from cases import KINDS, relative_error, scores

import triton_rankloss as trl
from triton_rankloss.reference import alrp, ap, rank_sort, scopes

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


def batch(kind: str, num_images: int, num_anchors: int, num_classes: int, num_positives: int, dtype: torch.dtype):
    """(logits [B, A, C], labels [B, A]): positives and negatives drawn as `kind`, some anchors ignored."""
    total = num_images * num_anchors * num_classes
    positives, negatives = scores(kind, num_positives, total)
    logits = negatives.to(dtype).view(num_images, num_anchors, num_classes)
    labels = torch.full((num_images, num_anchors), num_classes)
    labels.view(-1)[::7] = -1
    chosen = torch.randperm(num_images * num_anchors)[:num_positives]
    labels.view(-1)[chosen] = torch.randint(0, num_classes, (num_positives,))
    logits.view(-1, num_classes)[chosen, labels.view(-1)[chosen]] = positives.to(dtype)
    return logits, labels


def reference_loss_and_gradient(name, logits, labels, values, delta, per_image):
    if name == "ap":
        ranking, upstream = ap.forward(logits, labels, delta, True, per_image), [1.0]
    elif name == "alrp":
        ranking, upstream = alrp.forward(logits, labels, values, delta, 1e-5, per_image)[0], [1.0]
    else:
        ranking, upstream = rank_sort.forward(logits, labels, values, delta, 1e-10, per_image), [1.0, 1.0]
    upstream = torch.tensor(upstream, dtype=torch.float64)
    state = (ranking.positions, ranking.scores, ranking.weights, ranking.updates, ranking.offsets)
    return ranking.losses, scopes.transport_to_logits(logits, labels, upstream, *state, delta)


LOSSES = {
    "ap": lambda x, t, values, **o: [trl.ap_loss(x, t, **o)],
    "alrp": lambda x, t, values, **o: list(trl.alrp_loss(x, t, values, **o)),
    "rank_sort": lambda x, t, values, **o: list(trl.rank_sort_loss(x, t, values, **o)),
}


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_every_branch(name, kind, delta, per_image):
    logits, labels = batch(kind, 2, 37, 3, 11, torch.float64)
    num_positives = int(((labels >= 0) & (labels < 3)).sum())
    values = torch.rand(num_positives, dtype=torch.float64)
    expected, expected_gradient = reference_loss_and_gradient(name, logits, labels, values, delta, per_image)
    leaf = logits.clone().requires_grad_()
    losses = LOSSES[name](leaf, labels, values, delta=delta, per_image=per_image)
    sum(losses).backward()
    assert torch.stack(losses).tolist() == pytest.approx(expected.tolist(), rel=1e-10, abs=1e-12)
    assert relative_error(leaf.grad, expected_gradient) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["random", "init", "huge"])
def test_low_precision_logits_are_listed_in_their_dtype(kind, dtype):
    logits, labels = batch(kind, 1, 60, 3, 9, dtype)
    expected, expected_gradient = reference_loss_and_gradient("ap", logits.double(), labels, None, 1.0, False)
    leaf = logits.clone().requires_grad_()
    loss = trl.ap_loss(leaf, labels)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    # The interpreter truncates where a GPU rounds to bfloat16: one unit in the last place, 2**-7.
    assert relative_error(leaf.grad, expected_gradient) < (2**-7 if dtype == torch.bfloat16 else 2e-6)


def test_results_do_not_depend_on_what_the_buffers_held():
    logits, labels = batch("random", 2, 37, 3, 11, torch.float32)
    results = []
    for poison in (True, False):
        torch.use_deterministic_algorithms(poison)
        leaf = logits.clone().requires_grad_()
        loss = trl.ap_loss(leaf, labels, per_image=True, max_positives=40)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])

"""DR and IoU-balanced losses over a process group: gloo processes against one process on the concatenated batch."""

import pytest
import torch
from cases import assert_close
from processes import NUM_CLASSES, SHARDS, communicated_bytes, message_of, run, shard, shards

import triton_rankloss as rankloss


def dr(logits, labels, values, **options):
    return rankloss.DRLoss(**options)(logits, labels)


def focal(logits, labels, values, avg_factor=None, **options):
    return rankloss.IoUBalancedFocalLoss(**options)(logits, labels, values, avg_factor)


def bce(logits, labels, values, avg_factor=None, **options):
    return rankloss.IoUBalancedBCELoss(**options)(logits, labels, values, avg_factor)


def softmax(logits, labels, values, avg_factor=None, **options):
    rows = torch.cat([logits, logits.new_zeros(*logits.shape[:-1], 1)], -1)
    return rankloss.IoUBalancedCrossEntropyLoss(**options)(rows, labels, values, avg_factor)


def smooth_l1(logits, labels, values, avg_factor=None, **options):
    pred = logits[(labels >= 0) & (labels < NUM_CLASSES)]
    return rankloss.IoUBalancedSmoothL1Loss(**options)(pred, pred.detach() ** 2, values, avg_factor)


def softmax_per_anchor(logits, labels, values, **options):
    return softmax(logits, labels, torch.ones(labels.shape), **options)


LOSSES = (dr, focal, bce, softmax, smooth_l1)
CASES = {
    "dr": (dr, {}),
    "dr, per image": (dr, {"per_image": True}),
    "dr, small lambdas": (dr, {"pos_lambda": 0.01, "neg_lambda": 0.002}),  # kernels then keep a shift for every lane
    "focal": (focal, {}),
    "focal, avg_factor": (focal, {"avg_factor": 7, "gamma": 0.5}),
    "bce": (bce, {}),
    "bce, avg_factor": (bce, {"avg_factor": torch.tensor(7.0)}),
    "softmax": (softmax, {}),
    "softmax, avg_factor": (softmax, {"avg_factor": torch.tensor(7), "background": NUM_CLASSES}),
    "smooth l1": (smooth_l1, {"beta": 0.5, "loss_weight": 3.0}),
    "smooth l1, avg_factor": (smooth_l1, {"avg_factor": 7.0}),
    "smooth l1, tensor": (smooth_l1, {"avg_factor": torch.tensor(7.0, dtype=torch.float64)}),
}
# Where lambda is 0.002, the last digit of a mean in float32 is 3e-5 of the gradient.
DTYPES = {name: (torch.float64,) if "lambdas" in name else (torch.float32, torch.float64) for name in CASES}


def without_positives(logits, labels, values):
    return logits, torch.where(labels < 0, -1, NUM_CLASSES), values[:0]


def without_candidates(logits, labels, values):
    return logits, torch.full_like(labels, -1), values[:0]


def plain(*batch):
    return batch


def with_nan(logits, labels, values):
    """At a few negatives of some of the ranks."""
    return logits.masked_fill((labels == NUM_CLASSES).unsqueeze(-1) & (logits > 2.4), torch.nan), labels, values


FORMS = (plain, without_positives, without_candidates, with_nan)


def evaluate(batch, name, form, dtype, **options):
    """(loss, its gradient in the logits)."""
    loss, own_options = CASES[name]
    logits, labels, values = form(*batch)
    leaf = logits.to(dtype, copy=True).requires_grad_()
    value = loss(leaf, labels, values.to(dtype), **own_options, **options)
    value.backward()
    return value.detach(), leaf.grad


# By the argument they disagree on: what every rank calls.
DISAGREEMENTS = {
    "the loss": lambda rank: (LOSSES[rank], {}),
    "the loss,": lambda rank: (bce if rank == 0 else focal, {}),
    "margin": lambda rank: (dr, {"margin": 0.5 + rank}),
    "per_image": lambda rank: (dr, {"per_image": rank == 0}),
    "gamma": lambda rank: (focal, {"gamma": 2.0 if rank == 0 else 1.0}),
    "eta": lambda rank: (bce, {"eta": 2.0 if rank == 0 else 1.0}),
    "background": lambda rank: (softmax_per_anchor, {"background": rank}),
    "beta": lambda rank: (smooth_l1, {"beta": 1.0 + rank}),
    "avg_factor": lambda rank: (focal, {"avg_factor": None if rank == 0 else 8}),
    "avg_factor,": lambda rank: (softmax, {"avg_factor": torch.tensor(1 + rank)}),
}


def work(rank: int, world_size: int, group) -> dict:
    batch = shard(SHARDS[world_size][rank], rank)
    results = {
        (name, form.__name__, dtype): evaluate(batch, name, form, dtype, group=group)
        for name in CASES
        for form in FORMS
        for dtype in DTYPES[name]
    }
    for name, choose in DISAGREEMENTS.items():
        loss, options = choose(rank)
        results[name] = message_of(lambda loss=loss, options=options: loss(*batch, **options, group=group))
    results["ap"] = message_of(lambda: rankloss.ap_loss(*batch[:2], group=group) if rank else dr(*batch, group=group))
    for loss in LOSSES:
        results["bytes", loss.__name__] = communicated_bytes(lambda loss=loss: loss(*batch, group=group))
    if world_size == 2:
        results["compiled"] = [compiled(batch, loss, group) for loss in (dr, focal, softmax, smooth_l1_of_the_first)]
    return results


def smooth_l1_of_the_first(logits, labels, values, group):
    pred = logits.flatten(0, -2)[: len(values)]  # as many as there are positives; a mask's number is not known before
    return rankloss.iou_balanced_smooth_l1_loss(pred, pred.detach() ** 2, values, group=group)


def compiled(batch, loss, group):
    """[gradient, the same compiled]."""
    logits, labels, values = batch
    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaf = logits.clone().requires_grad_()
        function(leaf, labels, values, group=group).backward()
        gradients.append(leaf.grad)
    return gradients


@pytest.fixture(scope="module", params=sorted(SHARDS))
def ranks(request):
    """(world size, what every rank found)."""
    return request.param, run(work, request.param)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, dtypes in DTYPES.items() for dtype in dtypes])
def test_a_group_equals_one_process(ranks, name, form, dtype):
    world_size, results = ranks
    batch = [torch.cat(pieces) for pieces in zip(*shards(world_size), strict=True)]
    expected, expected_gradient = evaluate(batch, name, form, dtype)
    found = [result[name, form.__name__, dtype] for result in results]
    assert expected.isnan() == (form is with_nan and not name.startswith("smooth"))
    for loss, _ in found:
        assert loss.dtype == expected.dtype
        assert_close(loss, expected)
    if form is with_nan:
        return
    # Gradients carry the number of ranks, which the mean of DistributedDataParallel takes out again.
    gradient = torch.cat([gradient for _, gradient in found]) / world_size
    assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("name", [*DISAGREEMENTS, "ap"])
def test_ranks_that_disagree_all_get_an_error(ranks, name):
    argument = "the loss" if name == "ap" else name.rstrip(",")
    for result in ranks[1]:
        assert result[name].startswith(f"{argument} must be the same on every rank of group; got [")


def test_errors_say_what_every_rank_gave(ranks):
    assert "got [None, 8.0" in ranks[1][0]["avg_factor"]
    assert "got ['dr_loss', 'ap_loss'" in ranks[1][0]["ap"]


@pytest.mark.parametrize(
    ("loss", "num_numbers"), [("dr", 6), ("focal", 4), ("bce", 4), ("softmax", 4), ("smooth_l1", 1)]
)
def test_only_sums_travel(ranks, loss, num_numbers):
    # 72 bytes say how the loss was called, as for every other.
    for result in ranks[1]:
        assert 72 < result["bytes", loss] <= 72 + 8 * num_numbers


def test_compile_changes_nothing(ranks):
    if ranks[0] != 2:
        pytest.skip("compiled with two ranks")
    for result in ranks[1]:
        for expected, gradient in result["compiled"]:
            assert_close(gradient, expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_something_else_than_a_group_is_refused(loss):
    with pytest.raises(TypeError, match=r"group must be a .* process group or None; got str"):
        loss(torch.zeros(1, 2, NUM_CLASSES), torch.zeros(1, 2, dtype=torch.long), torch.zeros(2), group="gloo")

"""A rank whose arguments are wrong: every rank of the group gets an error, and the next call finds them in step."""

from unittest import mock

import pytest
import torch
from processes import NUM_CLASSES, SHARDS, message_of, run, shard

import triton_rankloss as rankloss


def smooth_l1(logits, labels, values, **options):
    pred = torch.ones(len(values), 4) if isinstance(logits, torch.Tensor) else logits
    return rankloss.iou_balanced_smooth_l1_loss(pred, torch.zeros(len(values), 4), values, **options)


def softmax(logits, labels, values, **options):
    rows = torch.cat([logits, logits[..., :1]], -1) if isinstance(logits, torch.Tensor) else logits
    return rankloss.iou_balanced_cross_entropy_loss(rows, labels, values, **options)


def boxes(values):
    return torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(len(values), 1)


def alrp_of_boxes(logits, labels, values, **options):
    module = rankloss.ALRPLoss(group=options.pop("group"))
    return module(logits, labels, pred_boxes=boxes(values), target_boxes=boxes(values), **options)


def rank_sort_of_boxes(logits, labels, values, **options):
    module = rankloss.RankSortLoss(group=options.pop("group"))
    return module(logits, labels, pred_boxes=boxes(values), target_boxes=boxes(values), **options)


# By name: (loss of logits, labels and one value for each positive; options that it refuses).
LOSSES = {
    "ap": (lambda logits, labels, values, **options: rankloss.ap_loss(logits, labels, **options), {"delta": -1}),
    "alrp": (rankloss.alrp_loss, {"per_image": 1}),
    "rank_sort": (rankloss.rank_sort_loss, {"eps": -1}),
    "dr": (lambda logits, labels, values, **options: rankloss.dr_loss(logits, labels, **options), {"tau": 0}),
    "focal": (rankloss.iou_balanced_focal_loss, {"gamma": "2"}),
    "bce": (rankloss.iou_balanced_bce_loss, {"avg_factor": torch.ones(2)}),
    "softmax": (softmax, {"background": 9}),
    "smooth_l1": (smooth_l1, {"beta": -1}),
    "ALRPLoss": (alrp_of_boxes, {"localization_errors": torch.ones(1)}),
    "RankSortLoss": (rank_sort_of_boxes, {"iou": torch.ones(1)}),
}


def an_option(logits, labels, values, wrong):
    return (logits, labels, values), wrong


def no_tensor(logits, labels, values, wrong):
    return (logits.tolist(), labels, values), {}


def one_value_too_many(logits, labels, values, wrong):
    """Found in an operator, when it has counted the positives."""
    return (logits, labels, torch.cat([values, torch.ones(1)])), {}


FAILURES = (an_option, no_tensor, one_value_too_many)
CASES = [
    (name, failure)
    for name in LOSSES
    for failure in FAILURES
    if failure is not one_value_too_many or name not in ("ap", "dr", "smooth_l1")  # these count nothing
]


def work(rank: int, world_size: int, group) -> dict:
    batch = shard(SHARDS[world_size][rank], rank)
    results = {}
    for name, failure in CASES:
        loss, wrong = LOSSES[name]
        arguments, options = failure(*batch, wrong) if rank == world_size - 1 else (batch, {})
        results[name, failure] = message_of(lambda: loss(*arguments, **options, group=group))  # noqa: B023
    all_fail = [message_of(lambda: rankloss.ap_loss(*batch[:2], delta=-1, group=group)) for _ in range(2)]
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.is_current_stream_capturing", return_value=True),
        pytest.raises(RuntimeError) as error,
    ):
        rankloss.dr_loss(*batch[:2], group=group)
    found = {"all": all_fail, "captured": str(error.value), "next": rankloss.ap_loss(*batch[:2], group=group)}
    return results | found


@pytest.fixture(scope="module", params=sorted({2, 3} & SHARDS.keys()))
def ranks(request):
    """What every rank found."""
    return run(work, request.param)


@pytest.mark.parametrize(("name", "failure"), CASES)
def test_every_rank_gets_an_error(ranks, name, failure):
    *others, failed = [result[name, failure] for result in ranks]
    for message in others:
        assert message == f"rank {len(others)} of group failed its argument check, and says why"
    # What it says without a group.
    loss, wrong = LOSSES[name]
    batch = shard(SHARDS[len(ranks)][-1], len(ranks) - 1)
    arguments, options = failure(*batch, wrong)
    assert failed == message_of(lambda: loss(*arguments, **options, group=None)) != "nothing was raised"


def test_the_next_call_finds_them_in_step(ranks):
    for result in ranks:
        assert result["all"] == ["delta must be >= 0 and finite; got -1"] * 2
        assert result["next"].isfinite()
        assert result["next"] == ranks[0]["next"]


def test_a_cuda_graph_cannot_capture_the_wait(ranks):
    for result in ranks:
        assert "which a CUDA graph cannot capture" in result["captured"]


def test_something_else_than_a_group_is_refused_at_once():
    for loss, _ in LOSSES.values():
        with pytest.raises(TypeError, match=r"group must be a .* process group or None; got str"):
            loss(torch.zeros(1, 2, NUM_CLASSES), torch.zeros(1, 2, dtype=torch.long), torch.zeros(2), group="gloo")

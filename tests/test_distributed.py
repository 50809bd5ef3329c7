"""Ranking over a process group: gloo processes against one process on the concatenated batch."""

import pytest
import torch
from cases import assert_close
from processes import ANCHORS, NUM_CLASSES, SHARDS, communicated_bytes, message_of, run, shard, shards

import triton_rankloss as rankloss


def ap(logits, labels, values, **options):
    return rankloss.ap_loss(logits, labels, **options)


def alrp(logits, labels, values, **options):
    classification, localization = rankloss.alrp_loss(logits, labels, values, **options)
    return classification + 3 * localization


def rank_sort(logits, labels, values, **options):
    ranking, sorting = rankloss.rank_sort_loss(logits, labels, values, **options)
    return ranking + 3 * sorting


LOSSES = {"ap": ap, "alrp": alrp, "rank_sort": rank_sort}


def evaluate(logits, labels, values, name, **options):
    """Loss, and its gradients in the logits and, for aLRP, in the errors."""
    logits = logits.clone().requires_grad_()
    values = values.clone().requires_grad_(name == "alrp")
    loss = LOSSES[name](logits, labels, values, **options)
    loss.backward()
    return {"loss": loss.detach(), "logits": logits.grad, "values": values.grad}


def work(rank: int, world_size: int, group) -> dict:
    batch = shard(SHARDS[world_size][rank], rank)
    results = {
        (name, per_image): evaluate(*batch, name, per_image=per_image, group=group)
        for name in LOSSES
        for per_image in (False, True)
    }
    results["bytes"] = communicated_bytes(lambda: rankloss.ap_loss(*batch[:2], group=group))
    for argument, options in {"delta": {"delta": 1.0 + rank}, "per_image": {"per_image": rank == 0}}.items():
        results[argument] = message_of(lambda options=options: rankloss.ap_loss(*batch[:2], **options, group=group))
    precision = torch.float64 if rank == 0 else torch.float32
    results["precision"] = message_of(lambda: rankloss.ap_loss(batch[0].to(precision), batch[1], group=group))
    loss = (lambda: ap(*batch, group=group)) if rank == 0 else (lambda: rank_sort(*batch, group=group))
    results["the loss"] = message_of(loss)
    results["ddp"] = ddp_gradients(rank, world_size, group)
    return results


class Head(torch.nn.Module):
    """Logits [B, A, C] from features [B, A, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, NUM_CLASSES)

    def forward(self, features):
        return self.linear(features)


def head_and_features(rank: int, images: int):
    torch.manual_seed(7)
    head = Head()
    return head, torch.randn(images, ANCHORS, 4, generator=torch.Generator().manual_seed(100 + rank))


def ddp_gradients(rank: int, world_size: int, group) -> torch.Tensor:
    images = SHARDS[world_size][rank] or 1
    head, features = head_and_features(rank, images)
    model = torch.nn.parallel.DistributedDataParallel(head)
    rankloss.ap_loss(model(features), shard(images, rank)[1], group=group).backward()
    return head.linear.weight.grad


@pytest.fixture(scope="module", params=sorted(SHARDS))
def ranks(request):
    """(world size, what every rank found)."""
    return request.param, run(work, request.param)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_a_group_equals_one_process(ranks, name, per_image):
    world_size, results = ranks
    batch = (torch.cat(pieces) for pieces in zip(*shards(world_size), strict=True))
    expected = evaluate(*batch, name, per_image=per_image)
    found = [result[name, per_image] for result in results]
    for result in found:
        assert_close(result["loss"], expected["loss"])
    # Gradients carry the number of ranks, which the mean of DistributedDataParallel takes out again.
    logits = torch.cat([result["logits"] for result in found]) / world_size
    assert_close(logits, expected["logits"])
    if name == "alrp":
        values = torch.cat([result["values"] for result in found]) / world_size
        assert_close(values, expected["values"])


def test_through_distributed_data_parallel(ranks):
    world_size, results = ranks
    images = [images or 1 for images in SHARDS[world_size]]
    head, _ = head_and_features(0, 1)
    features = torch.cat([head_and_features(rank, number)[1] for rank, number in enumerate(images)])
    labels = torch.cat([shard(number, rank)[1] for rank, number in enumerate(images)])
    rankloss.ap_loss(head(features), labels).backward()
    for result in results:
        assert_close(result["ddp"], head.linear.weight.grad, times=10)


@pytest.mark.parametrize("argument", ["delta", "per_image", "precision", "the loss"])
def test_ranks_that_disagree_all_get_an_error(ranks, argument):
    for result in ranks[1]:
        assert argument in result[argument]
        assert "must be the same on every rank of group" in result[argument]


def test_only_positives_travel(ranks):
    world_size, results = ranks
    positives = [values.numel() for _, _, values in shards(world_size)]
    # 72 bytes say how the loss was called; then a score of at most 8 bytes for each of this rank's positives, padded
    # to the longest list, and a count for each of all.
    for result in results:
        assert result["bytes"] <= 72 + 8 * max(positives) + 8 * sum(positives)


def test_something_else_than_a_group_is_refused():
    with pytest.raises(TypeError, match=r"group must be a .* process group or None; got str"):
        rankloss.ap_loss(torch.zeros(2), torch.zeros(2), group="gloo")

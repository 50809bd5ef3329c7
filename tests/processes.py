"""A batch in unequal shards, and gloo processes that each hold one of them."""

import os
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

NUM_CLASSES = 3
ANCHORS = 30
# Images on each rank, in unequal shards; None: no candidates at all. The last image of every rank has no positive.
SHARDS = {2: (3, 1), 3: (2, None, 3), 4: (1, 3, 2, 1)}
if os.environ.get("TRITON_INTERPRET") == "1":
    del SHARDS[2], SHARDS[4]  # what the interpreter runs is slow, and three ranks have every kind of shard


def shard(images: int | None, rank: int):
    """(logits [B, A, C], labels [B, A], one value for each positive) of a rank."""
    generator = torch.Generator().manual_seed(rank)
    logits = torch.randn(images or 0, ANCHORS, NUM_CLASSES, generator=generator)
    labels = torch.randint(-1, NUM_CLASSES + 6, logits.shape[:2], generator=generator).clamp(max=NUM_CLASSES)
    if images:
        labels[-1] = NUM_CLASSES
    num_positives = int(((labels >= 0) & (labels < NUM_CLASSES)).sum())
    return logits, labels, torch.rand(num_positives, generator=generator)


def shards(world_size: int) -> list:
    return [shard(images, rank) for rank, images in enumerate(SHARDS[world_size])]


def run(work, world_size: int) -> list:
    """What `work(rank, world_size, group)` returns in each of that many processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, args=(work, world_size, folder), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _process(rank: int, work, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(minutes=2),  # a rank that waits for one that has failed is an error soon
    )
    torch.save(work(rank, world_size, dist.group.WORLD), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def message_of(call) -> str:
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    return "nothing was raised"


def communicated_bytes(call) -> int:
    """What a call hands to collectives on this rank."""
    sent = []
    all_gather, all_reduce = dist.all_gather, dist.all_reduce
    dist.all_gather = lambda outputs, own, group: (sent.append(own.nbytes), all_gather(outputs, own, group=group))
    dist.all_reduce = lambda values, group: (sent.append(values.nbytes), all_reduce(values, group=group))
    call()
    dist.all_gather, dist.all_reduce = all_gather, all_reduce
    return sum(sent)

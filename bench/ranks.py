"""AP Loss over gloo processes of one thread each, every one with 16 images of its own.

There are more processes than cores, so time is each process's own processor time: what a rank computes, its part of
the collectives included, without the wait for the others.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import triton_rankloss as trl

from .workloads import Workload

CALLS = 10
RANK = Workload("rank", (16, 1100, 80), 320, "trained", relevant=0.1, labels=True)


class Cost(NamedTuple):
    """Of a call, forward and backward."""

    seconds: list[float]  # processor time of a rank, the mean over the ranks, of every call
    without_group: float  # the same, median, where every rank ranks by itself
    num_bytes: int  # that a rank hands to collectives
    logits: int  # of a rank
    positives: int  # of all ranks


def measure(num_ranks: int) -> Cost:
    """Run so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_worker, args=(num_ranks, folder), nprocs=num_ranks)
        found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(num_ranks)]
    seconds = [statistics.mean(calls) for calls in zip(*(rank["with"] for rank in found), strict=True)]
    alone = statistics.median(statistics.mean(calls) for calls in zip(*(r["without"] for r in found), strict=True))
    num_logits = RANK.shape[0] * RANK.shape[1] * RANK.shape[2]
    return Cost(seconds, alone, found[0]["bytes"], num_logits, num_ranks * RANK.num_positives)


def _worker(rank: int, num_ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    problem = RANK.problem(rank)

    def call(group) -> None:
        leaf = problem.logits.detach().requires_grad_()
        trl.ap_loss(leaf, problem.labels, group=group).backward()

    found = {
        "bytes": sent_bytes(lambda: call(dist.group.WORLD)),
        "with": [_seconds(lambda: call(dist.group.WORLD)) for _ in range(CALLS)],
        "without": [_seconds(lambda: call(None)) for _ in range(CALLS)],
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _seconds(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def sent_bytes(call: Callable[[], None]) -> int:
    """What a call hands to collectives on this rank."""
    sent: list[int] = []
    all_gather, all_reduce = dist.all_gather, dist.all_reduce
    dist.all_gather = lambda outputs, own, group: (sent.append(own.nbytes), all_gather(outputs, own, group=group))
    dist.all_reduce = lambda values, group: (sent.append(values.nbytes), all_reduce(values, group=group))
    try:
        call()
    finally:
        dist.all_gather, dist.all_reduce = all_gather, all_reduce
    return sum(sent)

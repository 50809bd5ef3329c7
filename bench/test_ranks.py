"""AP Loss with a process group over gloo: what it costs a rank, in processor time and bytes, as ranks are added.

Every rank is a process of one thread with 16 images of its own; the test is rank 0. There are more ranks than cores, so
the clock is the process's own time: what a rank computes, its part of the collectives included, without waiting.
"""

import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import triton_rankloss as rankloss

from .turns import DEVICE
from .workloads import Problem, Workload

CALLS = 10
RANK = Workload("rank", (16, 1100, 80), 320, "trained", relevant=0.1, labels=True)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(DEVICE == "cuda", reason="processes of a CPU")
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks(benchmark, one_thread, quick, tmp_path, ranks):
    workload = RANK.quick() if quick else RANK
    others = mp.spawn(follow, (ranks, str(tmp_path), workload), nprocs=ranks - 1, join=False, daemon=True)
    problem = join(0, ranks, str(tmp_path), workload)
    sent = sent_bytes(lambda: call(problem, dist.group.WORLD))
    benchmark.pedantic(call, (problem, dist.group.WORLD), rounds=CALLS)
    alone = [processor_seconds(lambda: call(problem, None)) for _ in range(CALLS)]
    dist.destroy_process_group()
    while not others.join():
        pass
    benchmark.group = f"ap ranks={ranks}"
    info = {"loss": "ap", "workload": f"ranks={ranks}", "peer": "ours", "axis": "ranks", "at": ranks, "bytes": sent}
    info |= {"logits": problem.leaf.numel(), "positives": ranks * workload.num_positives}
    benchmark.extra_info |= {**info, "without_group": statistics.median(alone)}


def follow(index: int, num_ranks: int, folder: str, workload: Workload) -> None:
    """Any other rank: it makes the calls that rank 0 makes."""
    torch.set_num_threads(1)
    problem = join(index + 1, num_ranks, folder, workload)
    for group in [dist.group.WORLD] * (1 + CALLS) + [None] * CALLS:
        call(problem, group)
    dist.destroy_process_group()


def join(rank: int, num_ranks: int, folder: str, workload: Workload) -> Problem:
    limit = timedelta(minutes=2)
    dist.init_process_group("gloo", f"file://{folder}/store", limit, rank=rank, world_size=num_ranks)
    return workload.problem(rank)


def call(problem: Problem, group: Any) -> None:
    problem.loss_and_gradient(lambda leaf, given: rankloss.ap_loss(leaf, given["targets"], group=group))


def processor_seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def sent_bytes(run: Callable[[], None]) -> int:
    """What a call hands to collectives on this rank."""
    sent: list[int] = []
    all_gather, all_reduce = dist.all_gather, dist.all_reduce
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_gather", lambda out, x, group: (sent.append(x.nbytes), all_gather(out, x, group)))
        patch.setattr(dist, "all_reduce", lambda x, group: (sent.append(x.nbytes), all_reduce(x, group=group)))
        run()
    return sum(sent)

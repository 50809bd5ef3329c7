"""AP Loss with a process group over gloo: what it costs a rank as ranks are added.

Every rank is a process of one thread with 16 images of its own; the test is rank 0. There are more ranks than cores, so
the clock is the process's own time: what a rank computes, its part of the collectives included, without waiting.
"""

import statistics
import time
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


@pytest.mark.skipif(DEVICE == "cuda", reason="processes of a CPU")
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks(benchmark, pytestconfig, tmp_path, ranks):
    workload, threads = RANK.quick() if pytestconfig.getoption("--quick") else RANK, torch.get_num_threads()
    others = mp.spawn(follow, (ranks, str(tmp_path), workload), nprocs=ranks - 1, join=False, daemon=True)
    problem = join(0, ranks, str(tmp_path), workload)
    call(problem, dist.group.WORLD)
    benchmark.pedantic(call, (problem, dist.group.WORLD), rounds=CALLS)
    alone = [call(problem, None) for _ in range(CALLS)]
    dist.destroy_process_group()
    torch.set_num_threads(threads)
    while not others.join():
        pass
    benchmark.group = f"ap ranks={ranks}"
    info = {"loss": "ap", "workload": f"ranks={ranks}", "peer": "ours", "axis": "ranks", "at": ranks}
    info |= {"logits": problem.leaf.numel(), "positives": ranks * workload.num_positives}
    benchmark.extra_info |= {**info, "without_group": statistics.median(alone)}


def follow(index: int, num_ranks: int, folder: str, workload: Workload) -> None:
    """Any other rank: it makes the calls that rank 0 makes."""
    problem = join(index + 1, num_ranks, folder, workload)
    for group in [dist.group.WORLD] * (1 + CALLS) + [None] * CALLS:
        call(problem, group)
    dist.destroy_process_group()


def join(rank: int, num_ranks: int, folder: str, workload: Workload) -> Problem:
    torch.set_num_threads(1)
    limit = timedelta(minutes=2)
    dist.init_process_group("gloo", f"file://{folder}/store", limit, rank=rank, world_size=num_ranks)
    return workload.problem(rank)


def call(problem: Problem, group: Any) -> float:
    """Seconds of processor time."""
    start = time.process_time()
    problem.run(lambda leaf, given: rankloss.ap_loss(leaf, given["targets"], group=group))
    return time.process_time() - start

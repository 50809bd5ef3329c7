"""Ranking of pixels, as in edge detection: positives and negatives by the hundred thousand, in bounded memory."""

import os
import subprocess
import sys

import pytest
import torch

import triton_rankloss as trl

MIB = 2**20
SCRIPT = """
import resource, sys, torch, triton_rankloss as trl

torch.set_num_threads(1)
LOSSES = {
    "ap": lambda logits, targets, values: trl.ap_loss(logits, targets),
    "alrp": lambda logits, targets, values: sum(trl.alrp_loss(logits, targets, values)),
    "rank_sort": lambda logits, targets, values: sum(trl.rank_sort_loss(logits, targets, values)),
}

def run(num_positives):
    logits = torch.randn(2 * num_positives, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values = torch.rand(num_positives, generator=torch.Generator().manual_seed(1))
    loss = LOSSES[sys.argv[1]](logits, torch.arange(2 * num_positives) % 2, values)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and logits.grad.abs().sum() > 0

run(10)  # what the first call loads is not what this is about
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(int(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux reports it")
@pytest.mark.parametrize(
    # A |P| x |N| matrix in float32 would take 85 GiB; |P| x |P| for Rank & Sort, whose time is quadratic, 244 MiB.
    ("name", "num_positives", "limit"),
    [("ap", 150_000, 256 * MIB), ("alrp", 150_000, 256 * MIB), ("rank_sort", 8_000, 64 * MIB)],
)
def test_memory_is_linear(name, num_positives, limit):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(num_positives)],
        capture_output=True,
        text=True,
        env=environment | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < limit


def test_an_image_of_edges(device, interpreted):
    """Dense targets [B, H, W], each image ranked by itself, the uncertain pixels ignored."""
    height, width = (8, 8) if interpreted else (120, 160)
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(-1, 2, (2, height, width), generator=generator)
    logits = torch.randn(2, height, width, generator=generator)
    loss = trl.ap_loss(logits.to(device), edges.to(device), per_image=True)
    one_by_one = [trl.ap_loss(*image) for image in zip(logits.to(device), edges.to(device))]
    assert loss.item() == pytest.approx(torch.stack(one_by_one).mean().item(), rel=1e-5)

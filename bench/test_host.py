"""The Python of AP Loss on the GPU path, forward and backward: what the host spends before it has launched all.

Kernels are not launched, so that this needs no GPU: TRITON_INTERPRET=1 (`make bench-host`) sends tensors of a CPU down
the same path. What Triton itself takes to bind the arguments of a launch is left out; `launches` says how often that
comes on top.
"""

from unittest import mock

import pytest
import torch

import triton_rankloss as rankloss
from triton_rankloss.dispatch import has_kernels

from .turns import DEVICE


@pytest.mark.skipif(
    not has_kernels(torch.empty(0, device=DEVICE)),
    reason="without a GPU the path of the kernels needs TRITON_INTERPRET=1",
)
def test_host(benchmark):
    logits, labels = torch.randn(64, 8, device=DEVICE, requires_grad=True), torch.full((64,), 8, device=DEVICE)
    labels[:9] = 1

    def step():
        logits.grad = None
        rankloss.ap_loss(logits, labels, max_positives=16).backward()

    with mock.patch("triton.runtime.jit.KernelInterface.__getitem__", return_value=ignore) as launch:
        step()
        launches = launch.call_count
        benchmark.pedantic(step, rounds=500, warmup_rounds=50)
    benchmark.extra_info |= {"loss": "ap", "workload": "host", "peer": "ours", "axis": "host", "launches": launches}


def ignore(*arguments, **options):
    """In place of a launch."""

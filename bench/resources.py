"""What a call takes beside time, and what the machine can copy."""

import statistics
from collections.abc import Callable
from functools import cache

import torch
from torch.profiler import ProfilerActivity, profile

from .turns import DEVICE, seconds


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes that torch's allocator held at most beyond what it held before the call."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


@cache
def copy_bandwidth() -> float:
    """Bytes per second, read plus written, of copying between two tensors too large for the caches."""
    source = torch.zeros(2**30 if DEVICE == "cuda" else 2**28, dtype=torch.uint8, device=DEVICE)
    target = torch.ones_like(source)
    return 2 * source.nbytes / statistics.median([seconds(target.copy_, source) for _ in range(12)][2:])

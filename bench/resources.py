"""What a call takes beside time: memory, kernel launches, host synchronizations; and what the machine can copy."""

import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync", "hipLaunchKernel")
SYNCHRONIZATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "hipStreamSynchronize")


def peak_memory(call: Callable[[], object], device: str) -> int:
    """Bytes that torch's allocator held at most beyond what it held before the call."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    changes = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        peak = max(peak, held)
    return peak


def launches_and_synchronizations(call: Callable[[], object]) -> tuple[int, int]:
    """How often a call on the GPU launches a kernel, copy or fill, and how often the host waits for it."""

    def recorded(run: Callable[[], object]) -> tuple[int, int]:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as events:
            run()
        names = [event.name for event in events.events()]
        return sum(name.startswith(LAUNCHES) for name in names), sum(name in SYNCHRONIZATIONS for name in names)

    launches, waits = recorded(call)
    # The profiler itself waits for the device when it stops.
    return launches, waits - recorded(lambda: None)[1]


def copy_bandwidth(device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes per second, read plus written, of copying between two tensors too large for the caches."""
    num_bytes = 2**30 if device == "cuda" else 2**28
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    taken = []
    for _ in range(12):
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return 2 * num_bytes / statistics.median(taken[2:])

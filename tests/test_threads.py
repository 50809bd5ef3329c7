"""Calls at the same time, from threads and on streams, give the bits that they give one after the other."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import assert_equal
from contract import LOSSES, evaluate, make_inputs, make_labels

NUM_THREADS = 8
CHOSEN = [loss for loss in LOSSES if loss.is_scalar]


def calls(device):
    """Each loss on a batch of its own size, large enough for threads to meet inside it."""
    for size, loss in enumerate(CHOSEN, start=20):
        inputs = make_inputs(loss, labels=make_labels("mixed").repeat(2, size), device=device)
        yield loss, {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}


def test_eight_threads(device, interpreted):
    if interpreted:
        pytest.skip("Triton's interpreter exchanges the functions of a module while a kernel runs")
    work = list(calls(device))
    expected = [evaluate(*call) for call in work]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        running = [(pool.submit(evaluate, *call), wanted) for _ in range(20) for call, wanted in zip(work, expected)]
        for future, wanted in running:
            assert_equal(future.result(), wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams are a GPU's")
def test_two_streams(device):
    work = list(calls(device))
    expected = [evaluate(*call) for call in work]
    torch.cuda.synchronize()
    streams = torch.cuda.Stream(), torch.cuda.Stream()
    found = []
    for _ in range(20):
        for place, call in enumerate(work):
            with torch.cuda.stream(streams[place % 2]):
                found.append(evaluate(*call))
    torch.cuda.synchronize()
    for place, result in enumerate(found):
        assert_equal(result, expected[place % len(work)])

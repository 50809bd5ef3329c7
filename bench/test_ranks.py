"""A call with a process group: what it costs a rank, in processor time and bytes, as ranks are added."""

import pytest

from .ranks import measure
from .suite import REPLAY

RANKS = (1, 2, 4, 8)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("ranks", RANKS if metafunc.config.getoption("--device") == "cpu" else ())


@pytest.mark.benchmark(timer=REPLAY.time)
def test_ranks(benchmark, ranks: int) -> None:
    found = measure(ranks)
    benchmark.group = f"ap, ranks={ranks}"
    benchmark.extra_info |= {
        "loss": "ap", "workload": f"ranks={ranks}", "axis": "ranks", "at": ranks, "peer": "ours", "phase": "both",
        "repeats": 1, "load": 0.0, "bytes": found.num_bytes, "logits": found.logits, "positives": found.positives,
        "without_group": found.without_group,
    }  # fmt: skip
    benchmark.pedantic(REPLAY.run, rounds=REPLAY.load(found.seconds))

"""From a duel to pytest-benchmark's table: one test for every implementation and phase of a case."""

from collections.abc import Callable

from .duel import Result
from .gate import RedCheckError
from .timing import Replay

REPLAY = Replay()


class Cases:
    """Duels, each run when its first test asks for it; only the last one is kept."""

    def __init__(self, run: Callable[..., tuple[dict[str, Result], dict[str, object]]]) -> None:
        self.run = run
        self.key: tuple | None = None
        self.results: dict[str, Result] = {}
        self.info: dict[str, object] = {}

    def __call__(self, *key: str) -> "Cases":
        if key != self.key:
            self.key, self.results, self.info = key, {}, {}
            self.results, self.info = self.run(*key)
        return self


def report(benchmark, case: Cases, peer: str, phase: str) -> None:
    """Hand what `peer` took to the fixture `benchmark`; a red check reports no speed."""
    result = case.results[peer]
    if result.failure is not None:
        benchmark.skipped = True
        raise RedCheckError(f"{peer}: {result.failure}")
    benchmark.group = " ".join([*case.key, phase])
    benchmark.extra_info |= {**case.info, "peer": peer, "phase": phase, **result.info()}
    benchmark.pedantic(REPLAY.run, rounds=REPLAY.load(result.durations(phase)))

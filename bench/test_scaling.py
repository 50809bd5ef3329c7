"""AP Loss against the number of negatives, of positives, of classes, and the share of negatives that matter."""

from typing import Any

import pytest

from .cases import Case, with_peers
from .peers import Peer
from .workloads import scaling


@pytest.mark.parametrize(("loss", "workload", "peer"), with_peers(("ap", each) for each in scaling()), ids=str)
def test_scaling(benchmark: Any, case: Case, peer: Peer) -> None:
    case.benchmark(benchmark, peer)

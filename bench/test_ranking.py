"""AP, aLRP and Rank & Sort Loss beside what a user would pick instead."""

from typing import Any

import pytest

from .cases import Case, with_peers
from .peers import Peer
from .workloads import RANKING

# AP Loss on everything; what differs in the other two is among the positives.
FEW = [
    each for each in RANKING if each.name in ("fewer-init", "million-trained", "retinanet-init", "retinanet-trained")
]
CASES = [*(("ap", each) for each in RANKING), *((loss, each) for loss in ("alrp", "rank_sort") for each in FEW)]


@pytest.mark.parametrize(("loss", "workload", "peer"), with_peers(CASES), ids=str)
def test_ranking(benchmark: Any, case: Case, peer: Peer) -> None:
    case.benchmark(benchmark, peer)

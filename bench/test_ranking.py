"""AP, aLRP and Rank & Sort Loss beside what a user would pick instead."""

import pytest

from .cases import name, with_peers
from .workloads import RANKING

# AP Loss on everything; what differs in the other two is among the positives.
FEW = [each for each in RANKING if each.name.endswith(("fewer-init", "retinanet-init", "-trained"))]
CASES = [*(("ap", each) for each in RANKING), *((loss, each) for loss in ("alrp", "rank_sort") for each in FEW)]


@pytest.mark.parametrize(("loss", "workload", "peer"), with_peers(CASES), ids=name)
def test_ranking(benchmark, case, peer):
    case.benchmark(benchmark, peer)

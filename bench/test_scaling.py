"""AP Loss against the number of negatives, of positives, of classes, and the share of negatives that matter."""

import pytest

from .cases import name, with_peers
from .workloads import scaling


@pytest.mark.parametrize(("loss", "workload", "peer"), with_peers(("ap", each) for each in scaling()), ids=name)
def test_scaling(benchmark, case, peer):
    case.benchmark(benchmark, peer)

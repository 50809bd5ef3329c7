"""Options of the suites, the case of a test, and what the result files say about the machine."""

import os
import platform
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from .cases import Case
from .turns import DEVICE
from .workloads import Made, Workload


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--seconds", type=float, default=2.0, help="of a case for turns, and again for its single timings")
    group.addoption("--quick", action="store_true", help="tiny sizes, few rounds: tries the suites, measures nothing")


@pytest.fixture(scope="session")
def last() -> dict[Any, Case]:
    """The case measured last: others are not kept in memory."""
    return {}


@pytest.fixture
def case(request: pytest.FixtureRequest, last: dict, loss: str, workload: Workload | Made) -> Case:
    """The case of a test, measured with the implementations that were selected when the first of them asks for it."""
    if (loss, workload) not in last:
        last.clear()
        tests = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
        peers = [test["peer"] for test in tests if (test.get("loss"), test.get("workload")) == (loss, workload)]
        quick, budget = map(request.config.getoption, ("--quick", "--seconds"))
        size = workload.quick() if quick and isinstance(workload, Workload) else workload
        last[loss, workload] = Case(loss, size, peers, 0 if quick else budget)
    return last[loss, workload]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Only what explains a number: no host names."""
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else machine_info["cpu"].get("brand_raw", "CPU")
    name = device if DEVICE == "cuda" else f"cpu-{os.cpu_count()}core"
    machine_info.clear()
    machine_info |= {
        "machine": name.lower().replace(" ", "-"),
        "device": device,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": import_module("triton").__version__ if find_spec("triton") else None,
        "quick": config.getoption("--quick"),
    }


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    """Without single durations and the runner's own settings, and to six digits: these files are kept."""
    output_json["commit_info"] = {name: output_json["commit_info"].get(name) for name in ("id", "dirty")}
    for benchmark in output_json["benchmarks"]:
        del benchmark["options"], benchmark["params"], benchmark["param"]
        benchmark["stats"] = {name: benchmark["stats"][name] for name in ("min", "q1", "median", "q3", "max", "rounds")}
        for values in (benchmark["stats"], benchmark["extra_info"]):
            values |= {name: float(f"{value:.6g}") for name, value in values.items() if isinstance(value, float)}

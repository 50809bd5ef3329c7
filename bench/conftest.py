"""Options of the suites, and what the result files say about the machine."""

import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from .resources import copy_bandwidth
from .suite import Cases
from .timing import CLOCKS

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    group.addoption("--seconds", type=float, default=4.0, help="per case, for all competitors together")
    group.addoption("--threads", type=int, help="of the CPU; default: all cores")
    group.addoption(
        "--clock", default="wall", choices=CLOCKS, help="cpu: processor time, for one thread on a busy machine"
    )
    group.addoption("--peers", help="measure only these, by name, separated by commas")


def pytest_configure(config: pytest.Config) -> None:
    threads = config.getoption("--threads")
    if threads is not None:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    return request.config.getoption("--device")


@pytest.fixture(scope="session")
def bandwidth(request: pytest.FixtureRequest, device: str) -> float:
    """Bytes per second, measured in this run; a GPU's by the wall, with the device idle at both ends."""
    clock = "wall" if device == "cuda" else request.config.getoption("--clock")
    return copy_bandwidth(device, CLOCKS[clock])


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest, device: str, bandwidth: float) -> Cases:
    return Cases(request, device, bandwidth)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Only what explains a number: no host names."""
    cpu = machine_info["cpu"].get("brand_raw", platform.processor())
    device = config.getoption("--device")
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    machine_info.clear()
    machine_info |= {
        "machine": (gpu or f"{device}-{os.cpu_count()}core").lower().replace(" ", "-"),
        "device": gpu or cpu,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "system": platform.system(),
        "clock": config.getoption("--clock") if device == "cpu" else "device",
    }


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict) -> None:
    """The commit, and whether what was measured differs from it."""
    measured = ["triton_rankloss", "reference", "bench"]
    changed = subprocess.run(
        ["git", "status", "--porcelain", "--", *measured], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    kept = {"id": commit_info.get("id"), "changed_since": sorted(line[3:] for line in changed.splitlines())}
    commit_info.clear()
    commit_info |= kept


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: list, output_json: dict) -> None:
    """Durations to four digits, and nothing of the runner's own settings: these files are kept."""
    for benchmark in output_json["benchmarks"]:
        for key in ("options", "param", "params", "fullname"):
            benchmark.pop(key, None)
        stats = benchmark["stats"]
        data = [float(f"{value:.4g}") for value in stats["data"]]
        benchmark["stats"] = {key: stats[key] for key in ("median", "q1", "q3", "min", "max", "rounds")} | {
            "data": data
        }


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None

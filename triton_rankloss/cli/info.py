"""Versions, devices, and which implementation each loss uses on each of them."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .. import __version__
from .cases import FORMS, SIZES, cases
from .operators import implementation, interpreted, operators_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: everything is printed."""


def run(options: argparse.Namespace) -> int:
    """Print everything; returns the exit code."""
    for name, value in versions().items():
        print(f"{name:12} {value}")
    if interpreted():
        print("TRITON_INTERPRET=1: kernels are interpreted, on the CPU")
    found = devices()
    for device in found:
        print(f"{device!s:12} {device_name(device)}")
    print()
    used: dict[str, set] = {}
    for form in FORMS:
        for case in cases(form, SIZES["tiny"], torch.device("cpu")):
            used.setdefault(case.loss, set()).update(operators_of(case))
    width = max(map(len, used)) + 2
    columns = {device: max(33, len(str(device))) for device in found}
    print("loss".ljust(width) + "".join(str(device).ljust(w) for device, w in columns.items()).rstrip())
    for loss, operators in used.items():
        kinds = (implementation(list(operators), device).ljust(w) for device, w in columns.items())
        print(loss.ljust(width) + "".join(kinds).rstrip())
    return 0


def versions() -> dict[str, str]:
    """Of this package and of what it runs on."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "not installed: the reference runs everywhere"
    gpu = torch.version.hip or torch.version.cuda
    return {
        "package": __version__,
        "torch": torch.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "GPU runtime": f"{'HIP' if torch.version.hip else 'CUDA'} {gpu}" if gpu else "none",
    }


def devices() -> list[torch.device]:
    """Those of this machine that losses can run on."""
    found = [torch.device("cpu")]
    found += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return found


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return platform.processor() or platform.machine()

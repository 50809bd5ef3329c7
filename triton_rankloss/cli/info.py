"""Versions, devices, which implementation each loss uses on each of them, and what to do where kernels will not run."""

import argparse
import platform
from importlib.metadata import packages_distributions, version

import torch

from .. import __version__
from .advice import advice, gpu_runtime, this_machine
from .cases import FORMS, SIZES, cases
from .operators import implementation, interpreted, operators_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None: everything is printed."""


def run(options: argparse.Namespace) -> int:
    """Print everything; returns the exit code."""
    for name, value in versions().items():
        print(f"{name:15} {value}")
    if interpreted():
        print("TRITON_INTERPRET=1: kernels are interpreted, on the CPU")
    found = devices()
    for device in found:
        print(f"{device!s:15} {device_name(device)}")
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
    if hints := advice(this_machine()):
        print("\nFor the kernels to run on a GPU:")
        print("\n".join(f"- {hint}" for hint in hints))
    return 0


def versions() -> dict[str, str]:
    """Of this package and of what it runs on."""
    # AMD's builds of PyTorch bring Triton under another name.
    triton = [f"{name} {version(name)}" for name in packages_distributions().get("triton", [])]
    return {
        "triton_rankloss": __version__,
        "torch": torch.__version__,
        "triton": ", ".join(triton).removeprefix("triton ") or "not installed",
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "GPU runtime": gpu_runtime() or "none",
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

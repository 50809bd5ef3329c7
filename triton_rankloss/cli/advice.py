"""What to do where kernels will not run."""

import os
import platform
import shutil
from importlib.util import find_spec
from typing import NamedTuple

import torch

from .architectures import OLDEST_COMPILED, OLDEST_OF_TRITON


class GPU(NamedTuple):
    """As PyTorch sees it."""

    name: str
    capability: tuple[int, int] | None  # None: of AMD


class Machine(NamedTuple):
    """Everything that kernels depend on."""

    system: str
    torch: str
    runtime: str | None  # "CUDA 13.0", "HIP 7.0"; None: PyTorch is built for CPUs
    gpus: tuple[GPU, ...]
    triton: bool
    compiler: bool


def this_machine() -> Machine:
    """The one that this runs on."""
    return Machine(
        platform.system(),
        torch.__version__,
        gpu_runtime(),
        tuple(_gpu(index) for index in range(torch.cuda.device_count())),
        find_spec("triton") is not None,
        # Where Triton looks for one.
        "CC" in os.environ or any(map(shutil.which, ("clang", "gcc"))),
    )


def gpu_runtime() -> str | None:
    """What PyTorch was built for."""
    if torch.version.hip:
        return f"HIP {torch.version.hip}"
    return f"CUDA {torch.version.cuda}" if torch.version.cuda else None


def _gpu(index: int) -> GPU:
    name = torch.cuda.get_device_name(index)
    return GPU(f"cuda:{index} ({name})", None if torch.version.hip else torch.cuda.get_device_capability(index))


def advice(machine: Machine) -> list[str]:
    """One entry for everything that keeps kernels from running; none where they should run."""
    if machine.system != "Linux" and not machine.triton:
        windows = " On Windows, WSL 2 is a Linux that sees the GPU." if machine.system == "Windows" else ""
        return [f"Triton is made for Linux; on {machine.system} the reference runs.{windows}"]
    found = []
    if machine.runtime is None:
        found.append(
            f"PyTorch {machine.torch} is a build for CPUs, where the reference runs. If there is an NVIDIA or AMD GPU, "
            "install the build for it: https://pytorch.org/get-started/locally/"
        )
    elif not machine.gpus:
        tool, variable = _names(machine.runtime)
        found.append(
            f"PyTorch is built for {machine.runtime} and finds no GPU. Does {tool} list one? Does {variable} hide it? "
            "A container must be given it (docker run --gpus all for NVIDIA)."
        )
    if not machine.triton:
        found.append(
            "Triton is not installed, so the reference runs. PyTorch's builds for GPUs bring it along; "
            "otherwise: pip install 'triton>=3.2'"
        )
        return found
    found += [message for gpu in machine.gpus for message in _of_age(gpu)]
    if machine.gpus and not machine.compiler:
        found.append("Triton needs a C compiler when its first kernel starts: install gcc or clang, or set CC.")
    return found


def _names(runtime: str) -> tuple[str, str]:
    return ("rocm-smi", "HIP_VISIBLE_DEVICES") if runtime.startswith("HIP") else ("nvidia-smi", "CUDA_VISIBLE_DEVICES")


def _of_age(gpu: GPU) -> list[str]:
    if gpu.capability is None or gpu.capability >= OLDEST_OF_TRITON:
        return []
    has = f"{gpu.name} has compute capability {_dotted(gpu.capability)}"
    if gpu.capability >= OLDEST_COMPILED:
        return [
            f"{has}: Triton promises {_dotted(OLDEST_OF_TRITON)} and newer. The kernels compile for it, and "
            "python -m triton_rankloss check says whether they are right there."
        ]
    return [
        f"{has}: the kernels are made for {_dotted(OLDEST_COMPILED)} and newer. Without Triton "
        "(pip uninstall triton) every loss runs through the reference, on this GPU too."
    ]


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))

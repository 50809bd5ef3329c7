"""The kernels that a loss launches, compiled for a GPU that need not be there.

The real launchers run on small CPU tensors, so signatures and specializations are those of real calls. Triton is told
that a GPU of the wanted kind is active, and compiles; nothing is launched, so what launchers return is never used: the
losses themselves are computed by the reference.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from .cases import Case
from .operators import launcher, operators

ALLOCATIONS = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


class Launch(NamedTuple):
    """One launch of a kernel."""

    kernel: str  # <family>.<name>
    compiled: Any  # None if that failed
    error: str = ""


class Launches(NamedTuple):
    """What one call sends to the GPU."""

    kernels: list[Launch]
    torch_operators: list[str]


def target_of(arch: str) -> GPUTarget:
    """`arch` as sm_<capability> (NVIDIA) or gfx<number> (AMD)."""
    if arch.startswith("sm_") and arch[3:].isdigit():
        return GPUTarget("cuda", int(arch[3:]), 32)
    if arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    raise ValueError(f"arch must be sm_<number> or gfx<number>; got {arch!r}")


def local_arch() -> str | None:
    """That of this machine's GPU."""
    if not torch.cuda.is_available():
        return None
    if torch.version.hip:
        return torch.cuda.get_device_properties(0).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


class _AbsentGPU:
    """As much of a Triton driver as compiling takes."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> GPUTarget:
        return self.target  # Triton keeps what it compiled per device

    def get_current_stream(self, device: GPUTarget) -> int:
        return 0


@contextmanager
def compiling(target: GPUTarget) -> Iterator[list[Launch]]:
    """Compile kernels instead of launching them; yields the launches, in order."""
    launches: list[Launch] = []
    # What a driver is kept under differs between versions of Triton; asking for it starts one, which takes a GPU.
    run, drivers = JITFunction.run, dict(vars(driver))

    def compile_only(function: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        try:
            launches.append(Launch(name, run(function, *args, grid=grid, warmup=True, **kwargs)))
        except Exception as error:  # of any stage of the compiler; the other kernels are to be compiled too
            launches.append(Launch(name, None, f"{type(error).__name__}: {error}".strip().splitlines()[0]))

    JITFunction.run = compile_only
    driver.set_active(_AbsentGPU(target))
    try:
        yield launches
    finally:
        JITFunction.run = run
        vars(driver).update(drivers)


class _OnLaunchers(TorchDispatchMode):
    """Calls the launcher of every operator beside its body; collects torch's own kernels.

    Kernels that do not run leave what a launcher allocates unwritten. The one thing that launchers read on the host is
    how many positives there are, and they are told.
    """

    def __init__(self, num_positives: int) -> None:
        super().__init__()
        self.num_positives = num_positives
        self.launching = False
        self.launchers = {operator._opoverload: launcher(operator, "cuda") for operator in operators()}
        self.torch_operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if self.launchers.get(func) is not None:
            self.launching = True
            with self:
                self.launchers[func](*args)
            self.launching = False
            return func(*args, **kwargs)
        if self.launching:
            # Below autograd, operators that consist of others come whole.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if name not in ALLOCATIONS and not func.is_view:
            self.torch_operators.append(name)
        if self.launching and name == "_local_scalar_dense":
            return self.num_positives
        result = func(*args, **kwargs)
        return result.zero_() if self.launching and name in ALLOCATIONS else result


def launches_of(case: Case, num_positives: int, dtype: torch.dtype, target: GPUTarget) -> tuple[Launches, Launches]:
    """(forward, backward): what they launch, the kernels compiled for `target`."""
    leaves = [leaf.to(dtype).detach().requires_grad_() for leaf in case.leaves]
    with compiling(target) as kernels, _OnLaunchers(num_positives) as mode:
        outputs = case.outputs(leaves)
        forward = Launches(kernels[:], mode.torch_operators[:])
        upstream = [torch.zeros_like(output) for output in outputs]
        kernels.clear()
        mode.torch_operators.clear()
        torch.autograd.grad(outputs, leaves, upstream)
        return forward, Launches(kernels[:], mode.torch_operators[:])

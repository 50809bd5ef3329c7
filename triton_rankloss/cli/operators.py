"""What PyTorch's dispatcher knows of this package's operators: which implementation runs where."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS
from torch.library import CustomOpDef
from torch.utils._python_dispatch import TorchDispatchMode

from ..dispatch import DEVICE_TYPES
from .cases import Case


def interpreted() -> bool:
    """Whether CPU tensors go through the Triton kernels, interpreted."""
    return "cpu" in DEVICE_TYPES


def operators() -> list[CustomOpDef]:
    """Every operator of the package, by name: PyTorch keeps a table of those that are defined in Python."""
    return [operator for name, operator in sorted(OPDEFS.items()) if name.startswith("triton_rankloss::")]


def launcher(operator: CustomOpDef, device_type: str) -> Any:
    """What was registered for a kind of device; None where the operator's own body, the reference, runs."""
    return operator._backend_fns.get(device_type)


@contextmanager
def on_reference(device_type: str) -> Iterator[None]:
    """Run the bodies of all operators, which are the reference, instead of their kernels."""
    with ExitStack() as stack:
        for operator in operators():
            if launcher(operator, device_type) is not None:
                stack.enter_context(operator.set_kernel_enabled(device_type, False))
        yield


class _Used(TorchDispatchMode):
    """Collects the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.overloads: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.overloads.add(func)
        return func(*args, **(kwargs or {}))


def operators_of(case: Case) -> list[CustomOpDef]:
    """The operators that a loss and its backward call; leaves must be on the CPU, where backward has no thread."""
    with on_reference("cpu"), _Used() as used:
        case.evaluate(case.leaves)
    return [operator for operator in operators() if operator._opoverload in used.overloads]


def implementation(used: list[CustomOpDef], device: torch.device) -> str:
    """What runs on a device for a loss that uses these operators."""
    launched = [launcher(operator, device.type) is not None for operator in used]
    kernels = "Triton, interpreted" if device.type == "cpu" else "Triton"
    if all(launched):
        return kernels
    return f"{kernels} + reference" if any(launched) else "reference"

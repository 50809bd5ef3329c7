"""Where a loss runs: its Triton kernels on GPUs (NVIDIA and AMD), the reference everywhere else.

Each loss is an operator of PyTorch (`torch.library.custom_op`). The body of the operator is the reference; the function
decorated with `kernel(operator)` imports the Triton launcher and calls it, and PyTorch chooses between the two by the
device of the tensors. `TRITON_INTERPRET=1`, Triton's own switch, sends CPU tensors through the kernels too: that is how
they are tested without a GPU.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

HAS_TRITON = importlib.util.find_spec("triton") is not None
DEVICE_TYPES = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)


def has_kernels(tensor: Tensor) -> bool:
    """Whether the operators launch kernels for this tensor's device."""
    return HAS_TRITON and tensor.device.type in DEVICE_TYPES


def kernel(operator: CustomOpDef) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate what launches the kernels of `operator`; it imports Triton, so only when it is called."""

    def register(launch: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(launch)
        def on_device(*arguments: Any) -> Any:
            device = arguments[0].device
            # Triton launches on the current GPU, which need not be the one that holds the tensors.
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                return launch(*arguments)

        if HAS_TRITON:
            operator.register_kernel(DEVICE_TYPES)(on_device)
        return launch

    return register


def fake_gradient(tensor: Tensor, *_: Any) -> Tensor:
    """Metadata of the gradient of the first argument, for `register_fake` of a backward operator."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def once_differentiable(
    backward: CustomOpDef,
    message: str = "the second derivatives of this loss are not implemented: the gradient that its backward returns "
    "cannot be differentiated again. Call backward without create_graph=True, or do not differentiate the gradient.",
) -> None:
    """Make differentiating the result of a backward operator a clear error."""

    def refuse(ctx: Any, *gradients: Tensor) -> None:
        raise RuntimeError(message)

    backward.register_autograd(refuse, setup_context=lambda ctx, inputs, output: None)


def save(ctx: Any, tensors: Sequence[Tensor | None], parameters: Sequence[Any] = ()) -> None:
    """Keep what backward needs: `ctx.saved_tensors`, and numbers in `ctx.parameters`."""
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)
    ctx.parameters = tuple(parameters)


def gradients(formula: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    """Gradients of `formula(*inputs)` by autograd, contiguous: the body of a backward operator on the reference."""
    with _autograd():
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        output = formula(*leaves)
        found = torch.autograd.grad(output, leaves, upstream.to(output.dtype), materialize_grads=True)
    return tuple(gradient.contiguous() for gradient in found)


@contextmanager
def _autograd() -> Iterator[None]:
    """Autograd within the body of an operator, where PyTorch has switched it off.

    Checkpointing listens to what autograd saves; what is saved here is none of its business, hence the hooks.
    """
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    included = torch._C._dispatch_tls_local_include_set()
    with (
        torch._C._ForceDispatchKeyGuard(included, excluded),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
    ):
        yield

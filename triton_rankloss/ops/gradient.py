"""What the operators with an ordinary gradient share; their backward operators have no derivative of their own."""

from typing import Any

import torch
from torch import Tensor


def _no_double_backward(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(
        "the second derivatives of this loss are not implemented: the gradient that its backward returns cannot be "
        "differentiated again. Call backward without create_graph=True, or do not differentiate the gradient."
    )


def once_differentiable(backward_op: Any) -> None:
    """Make differentiating the result of `backward_op` a clear error."""
    backward_op.register_autograd(_no_double_backward, setup_context=lambda ctx, inputs, output: None)


def save(ctx: Any, tensors: Any, parameters: Any) -> None:
    """Keep what backward needs: `ctx.saved_tensors`, and numbers in `ctx.parameters`."""
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)
    ctx.parameters = tuple(parameters)


def contiguous_like(tensor: Tensor) -> Tensor:
    """Metadata of a gradient."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)

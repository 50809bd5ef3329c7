"""What the operators with an ordinary gradient share: their backward operator has no derivative of its own."""

from typing import Any

from torch import Tensor


def _no_double_backward(ctx: Any, *gradients: Tensor) -> None:
    raise RuntimeError(
        "the second derivatives of this loss are not implemented: the gradient that its backward returns cannot be "
        "differentiated again. Call backward without create_graph=True, or do not differentiate the gradient."
    )


def once_differentiable(backward_op: Any) -> None:
    """Make differentiating the result of `backward_op` a clear error."""
    backward_op.register_autograd(_no_double_backward, setup_context=lambda ctx, inputs, output: None)

"""What the operators of AP, aLRP and Rank & Sort Loss share: the state they save, and transport, their backward.

Each loss is one operator that returns its losses and the O(|P|) state of `reference.scopes.Ranking`; the gradient of
the logits is made from that state in backward, scaled by the upstream gradient before it is rounded to their dtype.
"""

from typing import Any

import torch
from torch import Tensor

from ..reference import scopes, targets as reference_targets
from .dispatch import register_launcher


@torch.library.custom_op("triton_rankloss::transport", mutates_args=())
def transport(
    logits: Tensor, targets: Tensor, upstream: Tensor, positions: Tensor, scores: Tensor, weights: Tensor,
    updates: Tensor, offsets: Tensor, delta: float,
) -> Tensor:  # fmt: skip
    """Gradient of the logits; see `reference.scopes.transport_to_logits`."""
    return scopes.transport_to_logits(
        logits, targets, upstream, positions, scores, weights, updates, offsets, delta
    )  # fmt: skip


@transport.register_fake
def _(
    logits: Tensor, targets: Tensor, upstream: Tensor, positions: Tensor, scores: Tensor, weights: Tensor,
    updates: Tensor, offsets: Tensor, delta: float,
) -> Tensor:  # fmt: skip
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _no_double_backward(ctx: Any, gradient: Tensor) -> None:
    raise RuntimeError(
        "AP, aLRP and Rank & Sort Loss are error-driven: what backward returns is an update, not the gradient of a "
        "function, and has no derivative. Call backward without create_graph=True."
    )


register_launcher(transport, "transport", "backward")
transport.register_autograd(_no_double_backward, setup_context=lambda ctx, inputs, output: None)


def fake_state(
    logits: Tensor, num_updates: int, per_image: bool, max_positives: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Metadata of (positions, scores, weights, updates, offsets)."""
    num_positives = torch.library.get_ctx().new_dynamic_size() if max_positives is None else max_positives
    dtype = reference_targets.result_dtype(logits)
    return (
        logits.new_empty(num_positives, dtype=torch.long),
        logits.new_empty(num_positives, dtype=dtype),
        logits.new_empty(num_positives, dtype=dtype),
        logits.new_empty((num_updates, num_positives), dtype=dtype),
        logits.new_empty((max(1, logits.shape[0]) if per_image else 1) + 1, dtype=torch.long),
    )


def save_for_backward(ctx: Any, logits: Tensor, targets: Tensor, state: tuple[Tensor, ...], delta: float) -> None:
    """Keep what `logits_gradient` needs; `state` is (positions, scores, weights, updates, offsets, ...)."""
    ctx.save_for_backward(logits, targets, *state)
    ctx.mark_non_differentiable(*state)
    ctx.set_materialize_grads(False)
    ctx.delta = delta


def logits_gradient(ctx: Any, *upstreams: Tensor | None) -> Tensor | None:
    """Gradient of the logits, from the upstream gradients of the losses that move them (None: not used)."""
    given = next((upstream for upstream in upstreams if upstream is not None), None)
    if given is None or not ctx.needs_input_grad[0]:
        return None
    if len(upstreams) == 1:
        upstream = given.reshape(1)
    else:
        upstream = torch.stack([torch.zeros_like(given) if u is None else u for u in upstreams])
    logits, targets, *state = ctx.saved_tensors
    return transport(logits, targets, upstream, *state[:5], ctx.delta)

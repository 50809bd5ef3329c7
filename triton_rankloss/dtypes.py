"""In which dtype a loss comes out, and in which the reference adds up."""

import torch
from torch import Tensor


def result_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Dtype of losses, and of what is kept for backward: float64 if any of the arguments is, else float32."""
    is_double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """Float64, except on devices that lack it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def clamp_infinities(logits: Tensor) -> Tensor:
    """`logits` in the dtype of the result; infinite ones count as large finite ones, which cost much but not NaN."""
    limit = min(torch.finfo(logits.dtype).max, 1e30)
    return logits.to(result_dtype(logits)).clamp(-limit, limit)

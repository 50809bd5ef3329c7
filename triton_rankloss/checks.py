"""Checks of arguments: from metadata alone, with messages that name the argument and what it got."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


# Others (unsigned ones of more than 8 bits, floats of 8 bits, complex ones) can hardly be compared or added in PyTorch.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COMPARED = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *FLOATS)


def check_float_tensor(name: str, value: Tensor, *, like: Tensor | None = None) -> None:
    """A floating-point tensor, on the device of `like`, that carries no tangent."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(value).__name__}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype; got {value.dtype}")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} must have a floating-point dtype of at least 16 bits; got {value.dtype}")
    check_device(name, value, like)
    if forward_ad.unpack_dual(value).tangent is not None:
        raise RuntimeError(
            f"{name} carries a tangent: the losses have no forward-mode derivative (torch.func.jvp, torch.func.jacfwd, "
            "torch.autograd.forward_ad). Take reverse mode, backward or torch.autograd.grad"
        )


def check_device(name: str, value: Tensor, like: Tensor | None) -> None:
    """On the device of `like`, if that is given."""
    if like is not None and value.device != like.device:
        raise ValueError(f"{name} must be on the same device as the other arguments, {like.device}; got {value.device}")


def check_number(
    name: str, value: float, low: float, high: float = math.inf, *, low_open: bool = False, high_open: bool = False
) -> None:
    """A finite number from `low` to `high`, a bound itself excluded where it is open."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    above = value > low if low_open else value >= low
    below = value < high if high_open else value <= high
    # A NaN fails every comparison; torch.compile, to which numbers are symbols, has no math.isfinite of them.
    if not (value < math.inf and above and below):
        upper = "" if high == math.inf else f" and {'<' if high_open else '<='} {high:g}"
        raise ValueError(f"{name} must be {'>' if low_open else '>='} {low:g}{upper} and finite; got {value}")


def check_logits_and_targets(logits: Tensor, targets: Tensor, *, per_image: bool = False) -> None:
    """Logits [..., C] with dense targets of their shape or integer labels of shape logits.shape[:-1]."""
    check_float_tensor("logits", logits)
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets must be a tensor; got {type(targets).__name__}")
    _check_compared("targets", targets)
    if logits.dim() == 0:
        raise ValueError("logits must have at least one dimension; got shape ()")
    dense = targets.shape == logits.shape
    if not dense and targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets must have the shape of logits, {tuple(logits.shape)} (dense), or {tuple(logits.shape[:-1])} "
            f"(labels); got shape {tuple(targets.shape)}"
        )
    if not dense and (targets.dtype.is_floating_point or targets.dtype == torch.bool):
        raise TypeError(f"targets given as labels must have an integer dtype; got {targets.dtype}")
    check_device("targets", targets, logits)
    if per_image and targets.dim() < 2:
        raise ValueError(
            "per_image=True needs images as the first dimension of logits and targets, and candidates behind it; "
            f"got targets of shape {tuple(targets.shape)}"
        )


def check_per_positive(name: str, value: Tensor, logits: Tensor, *, per_anchor: bool = False) -> None:
    """A floating-point tensor [P], or with `per_anchor` one value for every anchor of the logits."""
    check_float_tensor(name, value, like=logits)
    anchors_shape = logits.shape[:-1] if logits.dim() > 1 else logits.shape
    if value.dim() != 1 and not (per_anchor and value.shape == anchors_shape):
        expected = f"[P] or {tuple(anchors_shape)}" if per_anchor else "[P]"
        raise ValueError(f"{name} must have shape {expected}, P the number of positives; got {tuple(value.shape)}")


def check_positive_int(name: str, value: int | None) -> None:
    """None, or an int that is at least 1."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int or None; got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be >= 1; got {value}")


def check_ranking(
    delta: float, per_image: bool, group: "ProcessGroup | None", max_positives: int | None, eps: float = 0.0
) -> None:
    """The options of AP, aLRP and Rank & Sort Loss."""
    check_number("delta", delta, 0)
    check_number("eps", eps, 0)
    check_bool("per_image", per_image)
    check_positive_int("max_positives", max_positives)
    group_name(group)


def group_name(group: "ProcessGroup | None") -> str | None:
    """Name of the group, for an operator."""
    if group is None:
        return None
    name = getattr(group, "group_name", None)
    if not isinstance(name, str):
        raise TypeError(f"group must be a torch.distributed process group or None; got {type(group).__name__}")
    return name


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """One of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_bool(name: str, value: bool) -> None:
    """A bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool; got {type(value).__name__}")


def check_boxes(name: str, value: Tensor, *, like: Tensor | None = None, shape: torch.Size | None = None) -> None:
    """Floating-point boxes [..., 4], of `shape` if that is given."""
    check_float_tensor(name, value, like=like)
    if value.dim() == 0 or value.shape[-1] != 4:
        raise ValueError(f"{name} must have shape [..., 4]; got {tuple(value.shape)}")
    if shape is not None and value.shape != shape:
        raise ValueError(
            f"{name} must have the shape of the boxes it is paired with, {tuple(shape)}; got {tuple(value.shape)}"
        )


def check_avg_factor(value: float | Tensor | None, like: Tensor) -> None:
    """None, a number > 0, or a tensor without dimensions on the device of `like`; its value is not looked at."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        check_number("avg_factor", value, 0, low_open=True)
        return
    if value.dim() != 0:
        raise ValueError(f"avg_factor must be a number or a tensor without dimensions; got shape {tuple(value.shape)}")
    if value.dtype == torch.bool:
        raise TypeError(f"avg_factor must have a real dtype; got {value.dtype}")
    _check_compared("avg_factor", value)
    check_device("avg_factor", value, like)


def split_avg_factor(avg_factor: float | Tensor | None) -> tuple[float | None, Tensor | None]:
    """Its two forms, for an operator; None for what is not given."""
    if isinstance(avg_factor, Tensor):
        return None, avg_factor.detach()
    return avg_factor, None


def check_softmax_labels(logits: Tensor, labels: Tensor, background: int, name: str = "labels") -> None:
    """Logits [..., K], K >= 1, integer labels of shape logits.shape[:-1], a channel from -K to K - 1."""
    check_float_tensor("logits", logits)
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(labels).__name__}")
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise TypeError(f"{name} must have an integer dtype; got {labels.dtype}")
    _check_compared(name, labels)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have shape [..., K], K at least 1; got {tuple(logits.shape)}")
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"{name} must have shape {tuple(logits.shape[:-1])}; got {tuple(labels.shape)}")
    check_device(name, labels, logits)
    check_background(background, logits.shape[-1])


def check_background(value: int, num_channels: int | None = None) -> None:
    """An integer; with `num_channels` known, a channel among them, counted from the end if below 0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"background must be an integer; got {type(value).__name__}")
    if num_channels is not None and not -num_channels <= value < num_channels:
        raise ValueError(f"background must be a channel, {-num_channels} to {num_channels - 1}; got {value}")


def _check_compared(name: str, value: Tensor) -> None:
    if value.dtype.is_complex:
        raise TypeError(f"{name} must have a real dtype; got {value.dtype}")
    if value.dtype not in COMPARED:
        raise TypeError(f"{name} must have a dtype that PyTorch compares, such as int64; got {value.dtype}")

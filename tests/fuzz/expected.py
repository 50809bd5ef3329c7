"""What a call should return, from literal.py, and how far rounding may move it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from cases import TOLERANCE
from torch import Tensor

from . import literal
from .calls import BOXES, RANKING, Call
from .literal import Unspecified

LEAVES = {
    "harmonic_detection": ("logits", "pred_boxes", "pred_deltas"),
    "task_contrastive": ("logits", "iou"),
    "alrp": ("logits", "localization_errors"),
}


class Number(NamedTuple):
    """A tensor of the result in float64, and by how much each entry may differ."""

    value: Tensor
    limit: Tensor

    def of(self, at: Callable[[Tensor], Tensor]) -> "Number":
        """A part of it."""
        return Number(at(self.value), at(self.limit))


class Results(NamedTuple):
    """Outputs, and by the names of the arguments their gradients: [B, A, C] of logits, else as the call gives them."""

    outputs: list[Number]
    gradients: dict[str, Number]


def leaves(call: Call) -> list[str]:
    """The arguments that gradients reach."""
    if "logits" in call.tensors:
        names: Any = LEAVES.get(call.name, ("logits",))
    else:
        names = [name for name in call.tensors if name != "iou" and not (call.name[:3] == "iou" and "boxes" in name)]
    return [name for name in names if name in call.tensors]


def expected(call: Call, upstreams: list[Tensor]) -> Results:
    """Outputs, and the gradients of their sum weighted by `upstreams`."""
    floats = [value for value in call.tensors.values() if value.is_floating_point()]
    dtype = torch.float64 if all(value.dtype == torch.float64 for value in floats) else torch.float32
    outputs, gradients = (_ranking if call.name in RANKING else _formula)(call, upstreams, dtype)
    found = {}
    for name, gradient in gradients.items():
        if name != "logits" and "logits" in call.tensors:
            positive = call.candidates[0]
            if call.per_anchor(name):
                gradient = gradient.of(lambda x, p=positive: call.of_anchors(x.masked_fill(~p, 0)).sum(-1))
            else:
                gradient = gradient.of(lambda x, p=positive: x[p])
        if "boxes" in name and _has_flat_box(call):  # where a side is 0 the derivative jumps
            continue
        info = torch.finfo(call.tensors[name].dtype)
        rounding = info.eps * gradient.value.abs() + info.smallest_normal * info.eps
        found[name] = Number(gradient.value, gradient.limit + rounding)
    return Results(outputs, found)


def _has_flat_box(call: Call) -> bool:
    boxes = [value for name, value in call.tensors.items() if "boxes" in name]
    return any(bool((x[..., :2] == x[..., 2:]).any()) for x in boxes)


def _ranking(call: Call, upstreams: list[Tensor], dtype: torch.dtype) -> tuple[list[Number], dict[str, Number]]:
    logits, (positive, negative) = call.tensors["logits"].double(), call.candidates
    given = next((n for n in ("localization_errors", "iou", "values_in_targets") if n in call.tensors), None)
    values = torch.zeros_like(logits) if given is None else call.of_each_logit(given).double()
    options = {name: x for name, x in call.options.items() if name not in ("per_image", "max_positives")}
    one = slice(None)
    scopes = range(len(logits)) if call.options.get("per_image") else (one,)
    ranked = [scope for scope in scopes if positive[scope].any()]
    is_nan = logits.isnan() & (positive | negative)
    if any(is_nan[scope].any() and not positive[scope].any() for scope in scopes):
        raise Unspecified("a NaN that nothing is ranked with")
    num_outputs = 1 if call.name == "ap" else 2
    outputs = torch.zeros(2, num_outputs, dtype=torch.float64)
    of_logits, of_values = torch.zeros(2, *logits.shape).double(), torch.zeros(2, *logits.shape).double()
    for scope in ranked:
        p, n = logits[scope][positive[scope]], logits[scope][negative[scope]]
        parts = getattr(literal, call.name)(p, n, values[scope][positive[scope]], **options)
        for k, part in enumerate(parts):
            for kind in range(2):  # values and their scales
                factor = upstreams[k].double().item() / len(ranked)
                outputs[kind, k] += part.value[kind] / len(ranked)
                of_logits[kind][scope][positive[scope]] += factor * part.positives[kind]
                of_logits[kind][scope][negative[scope]] += factor * part.negatives[kind]
                of_values[kind][scope][positive[scope]] += factor * part.values[kind]
    # Without the matrix of pairs a count in float64 is a difference of sums over all 2 P kinks, of up to N each.
    limits = TOLERANCE[dtype] + 2 * positive.sum() * negative.sum() * torch.finfo(torch.float64).eps
    if is_nan.any() or int(positive.sum()) > call.options.get("max_positives", positive.numel()):
        outputs[0, : 1 if is_nan.any() else None] = torch.nan
        of_logits[0] = torch.nan
    gradients = {"logits": Number(of_logits[0], limits * of_logits[1])}
    if given == "localization_errors":
        gradients[given] = Number(of_values[0], limits * of_values[1])
    return [Number(*pair) for pair in zip(outputs[0], limits * outputs[1])], gradients


def _formula(call: Call, upstreams: list[Tensor], dtype: torch.dtype) -> tuple[list[Number], dict[str, Number]]:
    """By autograd; what float32 costs the formula it may cost others as well, and as often in another dtype."""
    exact, eager = (_differentiate(call, upstreams, precision) for precision in (torch.float64, torch.float32))
    digits = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
    numbers = []
    for value, rough in zip(exact, eager):
        finite = value.isfinite() & rough.isfinite()
        error = (rough - value)[finite].abs().amax() if finite.any() else value.new_zeros(())
        largest = value[finite].abs().amax() if finite.any() else value.new_zeros(())
        limit = TOLERANCE[dtype] * largest + 2 * error * digits + torch.finfo(dtype).tiny
        numbers.append(Number(value, limit.expand_as(value)))
    names = leaves(call)
    # p is rounded where the IoU is subtracted from it: its derivative shares the scale of the IoU's.
    of_iou = torch.zeros(())
    if call.name == "task_contrastive" and numbers[-1].limit.numel():
        of_iou = numbers[-1].limit.amax()
    elif "task_contrastive_weight" in call.options:
        divisor = float(call.options.get("avg_factor", max(1, int(call.candidates[0].sum()))))
        of_iou = torch.tensor(TOLERANCE[dtype] * call.options["task_contrastive_weight"] / divisor)
    gradient = numbers[-len(names)]
    numbers[-len(names)] = gradient._replace(limit=gradient.limit + of_iou)
    return numbers[: -len(names)], dict(zip(names, numbers[-len(names) :]))


def _differentiate(call: Call, upstreams: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Outputs and gradients of the leaves, in float64."""
    tensors = {}
    for name, value in call.tensors.items():
        if value.is_floating_point():
            if name == "logits":  # infinite ones count as large ones
                limit = min(torch.finfo(value.dtype).max, 1e30)
                value = value.to(dtype).clamp(-limit, limit)
            elif "logits" in call.tensors:
                value = call.of_each_logit(name)
            tensors[name] = value.to(dtype, copy=True).requires_grad_()
    output = _evaluate(call, tensors)
    inputs = [tensors[name] for name in leaves(call)]
    found = torch.autograd.grad((output * upstreams[0].to(dtype)).sum(), inputs, materialize_grads=True)
    return [output.detach().double(), *(gradient.double() for gradient in found)]


def _evaluate(call: Call, tensors: dict[str, Tensor]) -> Tensor:
    options, name = dict(call.options), call.name
    reduction, avg_factor = options.pop("reduction", "none"), options.pop("avg_factor", None)
    if name in BOXES:
        return _reduce(literal.box_loss(*tensors.values(), name, **options), reduction)
    if name == "harmonic":
        return literal.harmonic(*tensors.values(), **options)
    if name == "iou_balanced_smooth_l1":
        weights = _iou(tensors).detach() ** options.get("lambda_", 1.5)
        terms = literal.smooth_l1(tensors["pred"], tensors["target"], options.get("beta", 1.0))
        return options.get("loss_weight", 1.0) * (weights @ terms) / float(avg_factor or max(1, len(weights)))
    x, (positive, negative) = tensors["logits"], call.candidates
    given = {key: value[positive] for key, value in tensors.items() if key != "logits"}
    if name == "dr":
        scopes = range(len(x)) if options.pop("per_image", False) else (slice(None),)
        losses = [literal.dr(x[s][positive[s]], x[s][negative[s]], **options) for s in scopes]
        num = sum(bool((positive | negative)[s].any()) for s in scopes)
        return sum(losses, x.sum() * 0 if not losses else 0) / max(1, num)
    anchors, channels = positive.nonzero()[:, :2].unbind(1), positive.nonzero()[:, 2]
    if name == "task_contrastive":
        is_softmax = options.pop("activation", "sigmoid") == "softmax"
        options.pop("background", None)
        terms = literal.task_contrastive(x[anchors], channels, given["iou"], softmax=is_softmax, **options)
        return _reduce(terms, reduction)
    num_positives = int(positive.sum())
    if call.is_softmax:
        labels = call.tensors["targets"]
        used = labels >= 0
        terms = -x[used].log_softmax(1).gather(1, labels[used, None].clamp(max=x.shape[2] - 1)).squeeze(1)
        terms = terms + torch.where(labels[used] < x.shape[2], 0.0, torch.nan).to(terms.dtype)
        is_background = labels[used] == options.get("background", -1) % x.shape[2]
        of_positives, of_negatives = terms[~is_background], terms[is_background]
        default = int(used.sum())
    else:
        alpha, gamma = None, 0.0
        if name == "iou_balanced_focal" or options.get("classification") == "focal":
            alpha = options.get("alpha", options.get("focal_alpha", 0.25))
            gamma = options.get("gamma", options.get("focal_gamma", 2.0))
        one, other = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
        of_positives, of_negatives = one * literal.focal(x[positive], gamma), other * literal.focal(-x[negative], gamma)
        default = num_positives
    avg_factor = float(max(1, default) if avg_factor is None else avg_factor)
    if name.startswith("iou_balanced"):
        return literal.balanced(of_positives, of_negatives, _iou(given), options.get("eta", 1.5), avg_factor)
    return _detection(x[anchors], channels, of_positives, of_negatives, given, options) / avg_factor


def _detection(
    rows: Tensor,
    channels: Tensor,
    c: Tensor,
    of_negatives: Tensor,
    given: dict[str, Tensor],
    options: dict[str, Any],
) -> Tensor:
    boxes, eps = (given["pred_boxes"], given["target_boxes"].detach()), options.get("eps", literal.IOU_EPS)
    localization = literal.box_loss(*boxes, "harmonic_iou", options.get("iou_gamma", 0.8), eps)
    localization = options.get("iou_weight", 1.5) * localization
    if "pred_deltas" in given:
        deltas = given["pred_deltas"], given["target_deltas"].detach()
        localization = localization + literal.smooth_l1(*deltas, options.get("beta", 1.0))
    loss = literal.harmonic(c, localization, options.get("detach_factors", False)).sum() + of_negatives.sum()
    weight = options.get("task_contrastive_weight", 0)
    if weight:
        is_softmax, margin = options["classification"] == "softmax", options.get("task_contrastive_margin", 0.2)
        iou = literal.box_loss(*boxes, "iou", eps=eps)
        loss = loss + weight * literal.task_contrastive(rows, channels, iou, margin, is_softmax).sum()
    return loss


def _iou(given: dict[str, Tensor]) -> Tensor:
    if "iou" in given:
        return given["iou"].detach()
    return literal.box_loss(given["pred_boxes"], given["target_boxes"], "iou").detach()


def _reduce(terms: Tensor, reduction: str) -> Tensor:
    total = terms.sum()
    return terms if reduction == "none" else total / max(1, terms.numel()) if reduction == "mean" else total

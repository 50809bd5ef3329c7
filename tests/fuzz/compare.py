"""A call through the package, compared with what is expected and with calls that mean the same; and made smaller."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

import triton_rankloss as rankloss

from .calls import RANKING, Call
from .expected import Number, Results, Unspecified, expected, leaves

Found = tuple[list[Tensor], dict[str, Tensor]]


class Mismatch(Exception):  # noqa: N818 - says what
    """A call that returned something else."""


def run(call: Call, device: torch.device | None = None) -> tuple[Found, list[Tensor]]:
    """((outputs, gradients), upstream gradients) in float64 on the CPU, gradients of logits as [B, A, C]."""
    arguments = {n: x.to(device) if isinstance(x, Tensor) else x for n, x in call.arguments().items()}
    for name in leaves(call):
        arguments[name] = arguments[name].detach().requires_grad_()
    outputs = getattr(rankloss, f"{call.name}_loss")(**arguments)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    upstreams = [torch.linspace(1, 0.5, x.numel()).view(x.shape).to(x) / (k + 1) for k, x in enumerate(outputs)]
    torch.autograd.backward(outputs, upstreams)
    gradients = {name: arguments[name].grad.double().cpu() for name in leaves(call)}
    if "logits" in gradients:
        gradients["logits"] = gradients["logits"].reshape(call.tensors["logits"].shape)
    return ([x.detach().double().cpu() for x in outputs], gradients), [x.cpu() for x in upstreams]


def check(call: Call, rng: random.Random, device: torch.device | None = None, share: float = 0.25) -> str:
    """Compare, a `share` of the calls with each of those that mean the same; says what came out.

    Raises Mismatch, or whatever the package does.
    """
    found, upstreams = run(call, device)
    try:
        wanted = expected(call, upstreams)
    except Unspecified:
        return "unspecified"
    _compare(call, found, wanted, "")
    if any(x.value.isnan().any() for x in (*wanted.outputs, *wanted.gradients.values())):
        return "NaN"
    for other in SAME:
        again = other(call, rng, device) if rng.random() < share else None
        if again is not None:
            outputs = [Number(x, 2 * of.limit) for x, of in zip(found[0], wanted.outputs)]
            both = wanted.gradients.keys() & again[1].keys()
            gradients = {name: Number(found[1][name], 2 * wanted.gradients[name].limit) for name in both}
            _compare(call, again, Results(outputs, gradients), other.__name__.strip("_"))
    return "compared"


def _compare(call: Call, found: Found, wanted: Results, other: str) -> None:
    for k, (actual, number) in enumerate(zip(found[0], wanted.outputs, strict=True)):
        if call.name in RANKING and k > 0 and wanted.outputs[0].value.isnan() and not number.value.isnan():
            continue  # a NaN need not reach both parts
        _check_close(f"{other} output {k}", actual, number)
    is_nan = any(number.value.isnan().any() for number in wanted.outputs)
    if is_nan and not _exceeds_bound(call):
        return
    for name, number in wanted.gradients.items():
        actual = found[1][name]
        if name == "logits":
            positive, negative = call.candidates
            used = positive | negative
            if call.name == "task_contrastive" or call.is_softmax:
                used = torch.ones_like(used)
            if is_nan:  # as with too many positives
                used = used & (not call.options.get("per_image"))
            actual, number = actual[used], number.of(lambda x, used=used: x[used])
        _check_close(f"{other} gradient of {name}", actual, number, torch.finfo(call.tensors[name].dtype).max)


def _exceeds_bound(call: Call) -> bool:
    return int(call.candidates[0].sum()) > call.options["max_positives"] if "max_positives" in call.options else False


def _check_close(what: str, actual: Tensor, number: Number, largest: float = torch.inf) -> None:
    wanted, limit = number
    if actual.shape != wanted.shape:
        raise Mismatch(f"{what.strip()}: shape {tuple(actual.shape)}, not {tuple(wanted.shape)}")
    actual, wanted = (x.clamp(-largest, largest) for x in (actual, wanted))
    far = ~((actual == wanted) | ((actual - wanted).abs() <= limit) | (actual.isnan() & wanted.isnan()))
    if far.any():
        at = tuple(far.nonzero()[0].tolist())
        by = (actual - wanted)[at].abs().item()
        raise Mismatch(
            f"{what.strip()}: {actual[at].item():.8g}, not {wanted[at].item():.8g}"
            + f", at {list(at)}" * bool(at)
            + f"; differs by {by:.1e}, rounding allows {limit[at].item():.1e}"
        )


# Calls that mean the same, each with its results in the order of the first; None where there is no such call.


def _permuted(call: Call, rng: random.Random, device: torch.device | None) -> Found | None:
    """Candidates in another order."""
    first, rest = call.leading
    images, anchors = rng.sample(range(first), first), rng.sample(range(rest), rest)
    (outputs, gradients), upstreams = run(call.select(images, anchors if "logits" in call.tensors else None), device)
    if any(upstream.dim() > 0 for upstream in upstreams):
        return None  # which would be permuted as well
    if "logits" in gradients:
        back = torch.tensor(images).argsort(), torch.tensor(anchors).argsort()
        gradients = {"logits": gradients["logits"][back[0]][:, back[1]]}
    else:
        gradients = {name: gradient[torch.tensor(images).argsort()] for name, gradient in gradients.items()}
    return outputs, gradients


def _without_ignored(call: Call, rng: random.Random, device: torch.device | None) -> Found | None:
    """Whatever stands where nothing is to be read."""
    if "logits" not in call.tensors or call.name == "task_contrastive" or "task_contrastive_weight" in call.options:
        return None
    tensors, positive = dict(call.tensors), call.candidates[0]
    logits, targets = tensors["logits"], tensors["targets"]
    ignored = (targets < 0).reshape(*targets.shape, *[1] * (3 - targets.dim())).expand_as(logits)
    tensors["logits"] = logits.masked_fill(ignored, rng.choice((torch.nan, torch.inf, -torch.inf, 0.5)))
    if "iou" in tensors and call.per_anchor("iou"):
        tensors["iou"] = tensors["iou"].masked_fill(~positive.any(2, keepdim=True), torch.nan)
    return run(replace(call, tensors=tensors), device)[0]


def _dense(call: Call, rng: random.Random, device: torch.device | None) -> Found | None:
    """Dense targets in place of labels."""
    if "logits" not in call.tensors or call.is_softmax or call.tensors["targets"].dim() == 3:
        return None
    positive, negative = call.candidates
    dense = torch.where(positive, 1, torch.where(negative, 0, -1))
    call = replace(call, tensors=call.tensors | {"targets": dense}, form=call.form | {"targets": torch.int8})
    return run(call, device)[0] if call.form["shape"] != "anchor" else None


def _images(call: Call, rng: random.Random, device: torch.device | None) -> Found | None:
    """The mean over the images, each by itself."""
    if not call.options.get("per_image"):
        return None
    positive, negative = call.candidates
    used = (positive | negative if call.name == "dr" else positive).flatten(1).any(1)
    options = {name: x for name, x in call.options.items() if name not in ("per_image", "max_positives")}
    of_images = [run(replace(call.select([b]), options=options), device)[0] for b in used.nonzero().flatten().tolist()]
    if not of_images:
        return None
    gradient = torch.zeros_like(call.tensors["logits"], dtype=torch.float64)
    gradient[used] = torch.cat([gradients["logits"] for _, gradients in of_images]) / len(of_images)
    outputs = [sum(parts) / len(of_images) for parts in zip(*(outputs for outputs, _ in of_images))]
    return outputs, {"logits": gradient}


SAME = (_permuted, _without_ignored, _dense, _images)


def shrink(call: Call, fails: Callable[[Call], bool], seconds: float = 20) -> Call:
    """A smaller call that fails alike: without some images, anchors and options, and laid out plainly."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        smaller = (other for other in _smaller(call) if time.monotonic() < end and fails(other))
        found = next(smaller, None)
        if found is None:
            break
        call = found
    return call


def _smaller(call: Call) -> Iterator[Call]:
    first, rest = call.leading
    for size in (first // 2, 1):
        for start in range(0, first if 0 < size < first else 0, max(1, size)):
            yield call.select([*range(start), *range(start + size, first)])
    if "logits" in call.tensors:
        for size in (rest // 2, rest // 8, 1):
            for start in range(0, rest if 0 < size < rest else 0, max(1, size)):
                yield call.select(None, [*range(start), *range(start + size, rest)])
    for name in call.options:
        if name not in ("activation", "classification"):
            yield replace(call, options={n: x for n, x in call.options.items() if n != name})
    if call.form["strided"]:
        yield replace(call, form=call.form | {"strided": False})

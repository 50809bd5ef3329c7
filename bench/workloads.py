"""What is measured: sizes, score distributions, dtypes and forms of targets, with fixed seeds."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .peers import Loss
from .turns import DEVICE

REACH = 1.0  # delta of AP and aLRP Loss: a negative that scores below min(p) - delta moves nothing
# Mean and standard deviation of the scores of negatives and positives.
SCORES = {
    "init": ((-4.6, 0.05), (-4.6, 0.05)),  # before the first step: one narrow band, every negative matters
    "mixed": ((-4.6, 1.0), (-4.6, 1.0)),  # the same, but spread over the kinks p - delta and p + delta of H
    "trained": ((-8.0, 1.5), (1.0, 1.5)),
    "hard": ((-6.0, 1.5), (-1.0, 1.5)),
    "ties": ((-6.0, 1.5), (-1.0, 1.5)),  # as hard, rounded to quarters
}


@dataclass
class Problem:
    """One input of a loss: the leaf, of which the gradient is taken, and all else that implementations are given."""

    leaf: Tensor
    given: dict[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)  # what a row of results says about it

    def loss_and_gradient(self, loss: Loss) -> tuple[Tensor, Tensor]:
        leaf = self.leaf.detach().requires_grad_()
        value = loss(leaf, self.given)
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.detach(), gradient

    run = loss_and_gradient  # what is timed

    def exact(self) -> "Problem":
        """The same, to be computed in float64."""
        given = {name: x.double() if x.is_floating_point() else x for name, x in self.given.items()}
        return Problem(self.leaf.double(), given)

    def groups(self) -> list[Any]:
        """Within which gradients are compared: masks of the positives and of the others; of boxes, everything."""
        if "positions" not in self.given:
            return [slice(None)]
        positive = torch.zeros(self.leaf.shape, dtype=torch.bool, device=DEVICE)
        positive.view(-1)[self.given["positions"]] = True
        return [positive, ~positive]


def detection(logits: Tensor, labels: Tensor, iou: Tensor, as_labels: bool) -> Problem:
    """Logits [..., C] with labels [...], 0..C-1 or C for background, and the IoU [P] of its positives."""
    num_classes, positions = logits.shape[-1], find_positions(logits, labels)
    iou_per_anchor = iou.new_zeros(labels.shape)
    iou_per_anchor.view(-1)[positions // num_classes] = iou
    low = 100 * iou.unsqueeze(1) * iou.new_tensor([1.0, 2.0])
    boxes = torch.cat([low, low + 20], 1)
    given = {
        "targets": labels if as_labels else dense_targets(logits, labels),  # of our losses
        "labels": labels,
        "softmax_labels": labels.clamp(max=num_classes - 1),  # the last channel is the background
        "positions": positions,
        "iou": iou,  # the target of Rank & Sort Loss; its complement is the localization error of aLRP Loss
        "iou_per_anchor": iou_per_anchor,
        "num_positives": iou.new_tensor(float(iou.numel())),
        "num_samples": iou.new_tensor(float(labels.numel())),
        "target_boxes": boxes,
        "boxes": boxes + 10 * (1 - iou.unsqueeze(1)),  # moved so that their IoU varies
    }
    info = {"logits": logits.numel(), "positives": iou.numel(), "classes": num_classes}
    return Problem(logits, given, info)


def find_positions(logits: Tensor, labels: Tensor) -> Tensor:
    anchors = (labels.reshape(-1) < logits.shape[-1]).nonzero().squeeze(1)
    return anchors * logits.shape[-1] + labels.reshape(-1)[anchors]


def dense_targets(logits: Tensor, labels: Tensor) -> Tensor:
    targets = torch.zeros(logits.shape, device=DEVICE)
    targets.view(-1)[find_positions(logits, labels)] = 1.0
    return targets


@dataclass(frozen=True)
class Workload:
    """Logits [..., C] and which of them are positives."""

    name: str  # on an axis of the scaling suite "axis=place"
    shape: tuple[int, ...]
    num_positives: int
    scores: str
    relevant: float | None = None  # share of the negatives that matter; the lowest positive is placed for it
    dtype: torch.dtype = torch.float32
    labels: bool = False  # targets as labels; else dense

    def quick(self) -> "Workload":
        """The same at a tiny size."""
        shape = (*(min(n, 4) for n in self.shape[:-2]), min(self.shape[-2], 400), min(self.shape[-1], 10))
        relevant = None if self.relevant is None else max(self.relevant, 0.3)  # of few negatives, enough for buckets
        return replace(self, shape=shape, num_positives=min(self.num_positives, 40), relevant=relevant)

    def problem(self, seed: int) -> Problem:
        # Generated where it is used: on a GPU the largest would take minutes to generate on the host.
        generator = torch.Generator(DEVICE).manual_seed(1000 + seed)
        (low_mean, low_std), (high_mean, high_std) = SCORES[self.scores]
        logits = torch.empty(self.shape, device=DEVICE).normal_(low_mean, low_std, generator=generator)
        num_classes = self.shape[-1]
        num_anchors = logits.numel() // num_classes
        anchors = torch.randperm(num_anchors, generator=generator, device=DEVICE)[: self.num_positives].sort().values
        classes = torch.randint(num_classes, anchors.shape, generator=generator, device=DEVICE)
        labels = torch.full((num_anchors,), num_classes, device=DEVICE)
        labels[anchors] = classes

        scores = torch.empty(anchors.shape, device=DEVICE).normal_(high_mean, high_std, generator=generator)
        if self.relevant is not None:
            lowest = NormalDist(low_mean, low_std).inv_cdf(1 - self.relevant) + REACH
            scores = scores.clamp(min=lowest)
            scores[0] = lowest
        logits.view(-1)[anchors * num_classes + classes] = scores
        if self.scores == "ties":
            logits = (4 * logits).round_() / 4
        iou = torch.rand(anchors.shape, generator=generator, device=DEVICE) * 0.95 + 0.05
        problem = detection(logits.to(self.dtype), labels.view(self.shape[:-1]), iou, self.labels)
        relevant = logits >= logits.view(-1)[problem.given["positions"]].min() - REACH
        problem.info["relevant"] = int(relevant.sum()) - self.num_positives
        axis, _, at = self.name.partition("=")
        problem.info |= {"axis": axis, "at": float(at)} if at else {}
        return problem


def boxes(num_boxes: int, seed: int) -> Problem:
    """Pairs of boxes that overlap more or less."""
    generator = torch.Generator(DEVICE).manual_seed(1000 + seed)
    low, size, shift, growth = 20 * torch.rand(4, num_boxes, 2, generator=generator, device=DEVICE)
    target = torch.cat([low, low + 4 + size], 1)
    return Problem(torch.cat([low + shift / 4, low + shift / 4 + 4 + growth], 1), {"target_boxes": target})


class Made(NamedTuple):
    name: str
    problem: Callable[[int], Problem]  # of a seed


TRAINED = {"scores": "trained", "relevant": 0.01}
if DEVICE == "cpu":
    # Sized for two cores: one image, or one decoder layer, of what the GPU set holds.
    MILLION = Workload("million-init", (12_513, 80), 1000, "init")  # 1 M negatives and 1000 positives
    FEWER = replace(MILLION, name="fewer-init", num_positives=300)
    RANKING = (
        MILLION,
        replace(MILLION, name="million-trained", **TRAINED),
        replace(MILLION, name="million-trained-labels", **TRAINED, labels=True),
        FEWER,
        replace(FEWER, name="fewer-hard", scores="hard"),
        replace(FEWER, name="fewer-ties", scores="ties"),
        replace(FEWER, name="fewer-init-bf16", dtype=torch.bfloat16),
        Workload("proposals", (2048, 81), 500, "init", labels=True),
        Workload("atss-image", (1, 22_000, 80), 156, "trained", relevant=0.1, labels=True),
        Workload("detr-layer", (16, 900, 80), 200, "init", labels=True),
        Workload("lvis-crop", (1, 5_500, 1203), 250, **TRAINED, dtype=torch.bfloat16, labels=True),
        Workload("edges", (50_000, 1), 20_000, "hard"),  # a map's pixels: about as many positives as negatives
    )
    MANY = replace(MILLION, name="million", scores="trained", labels=True)
else:
    RETINANET = Workload("retinanet-init", (2, 200_000, 80), 400, "init", labels=True)
    RANKING = (
        RETINANET,
        replace(RETINANET, name="retinanet-trained", **TRAINED),
        replace(RETINANET, name="retinanet-hard", scores="hard"),
        replace(RETINANET, name="retinanet-ties", scores="ties"),
        replace(RETINANET, name="retinanet-init-bf16", dtype=torch.bfloat16),
        Workload("atss-batch16", (16, 22_000, 80), 2500, "trained", relevant=0.1, labels=True),
        Workload("proposals", (2048, 81), 500, "init", labels=True),
        Workload("detr-aux", (6, 16, 900, 80), 1200, "init", labels=True),
        Workload("lvis", (16, 22_000, 1203), 4000, **TRAINED, dtype=torch.bfloat16, labels=True),
        Workload("edges", (320_000, 1), 100_000, "hard"),
    )
    MANY = replace(RETINANET, name="retinanet", scores="trained")
POINTWISE = [MANY, replace(MANY, name=f"{MANY.name}-bf16", dtype=torch.bfloat16)]
BOXES = Made("boxes", partial(boxes, 2**18 if DEVICE == "cpu" else 2**24))


def scaling() -> list[Workload]:
    """Workloads along each axis; the positives grow among negatives that are all mixed, the hardest case."""
    on_gpu = DEVICE == "cuda"
    base = Workload("", (200_000 if on_gpu else 3_125, 80), 400 if on_gpu else 100, "init", labels=True)
    growth = replace(base, shape=(200_000, 80) if on_gpu else (10_000, 10), scores="mixed")
    shares = replace(base, shape=(200_000 if on_gpu else 12_500, 80), scores="trained")
    decades = (1e5, 1e6, 1e7, 1e8, 1e9) if on_gpu else (1e4, 1e5, 1e6, 4e6)
    points = {
        **{f"negatives={n:g}": replace(base, shape=(round(n / 80), 80)) for n in decades},
        **{f"positives={p}": replace(growth, num_positives=p) for p in (128, 512, 2048, 8192)},
        **{f"relevant={share}": replace(shares, relevant=share) for share in (0.001, 0.01, 0.1, 0.3, 0.6, 0.99)},
        **{f"classes={c}": replace(base, shape=(base.shape[0], c)) for c in (1, 20, 80, 365, 1203)},
    }
    return [replace(point, name=name) for name, point in points.items()]

"""What is measured: sizes, score distributions, dtypes and forms of targets, with fixed seeds."""

from dataclasses import dataclass, replace
from statistics import NormalDist

import torch

from .problems import Boxes, Problem

REACH = 1.0  # delta of AP and aLRP Loss: a negative that scores below min(p) - delta moves nothing
# Mean and standard deviation of the scores of negatives and positives.
SCORES = {
    "init": ((-4.6, 0.05), (-4.6, 0.05)),  # before the first step: one narrow band, every negative matters
    "trained": ((-8.0, 1.5), (1.0, 1.5)),
    "hard": ((-6.0, 1.5), (-1.0, 1.5)),
    "ties": ((-6.0, 1.5), (-1.0, 1.5)),  # as hard, rounded to quarters
}


@dataclass(frozen=True)
class Workload:
    """Logits [..., C] and which of them are positives."""

    name: str
    shape: tuple[int, ...]
    num_positives: int
    scores: str
    relevant: float | None = None  # share of the negatives that matter; the lowest positive is placed for it
    dtype: torch.dtype = torch.float32
    labels: bool = False  # targets as labels; else dense

    def problem(self, seed: int = 0, device: str | torch.device = "cpu") -> Problem:
        """The workload's `seed`-th drawing."""
        # Generated where it is used: on a GPU the largest would take minutes to generate on the host.
        generator = torch.Generator(device).manual_seed(1000 + seed)
        (low_mean, low_std), (high_mean, high_std) = SCORES[self.scores]
        logits = torch.empty(self.shape, device=device).normal_(low_mean, low_std, generator=generator)
        anchors_shape, num_classes = self.shape[:-1], self.shape[-1]
        num_anchors = logits.numel() // num_classes
        anchors = torch.randperm(num_anchors, generator=generator, device=device)[: self.num_positives].sort().values
        classes = torch.randint(num_classes, anchors.shape, generator=generator, device=device)
        labels = torch.full((num_anchors,), num_classes, device=device)
        labels[anchors] = classes

        scores = torch.empty(anchors.shape, device=device).normal_(high_mean, high_std, generator=generator)
        if self.relevant is not None:
            lowest = NormalDist(low_mean, low_std).inv_cdf(1 - self.relevant) + REACH
            scores = scores.clamp(min=lowest)
            scores[0] = lowest
        logits.view(-1)[anchors * num_classes + classes] = scores
        if self.scores == "ties":
            logits = (4 * logits).round_() / 4
        iou = torch.rand(anchors.shape, generator=generator, device=device) * 0.95 + 0.05
        return Problem(logits.to(self.dtype), labels.view(anchors_shape), iou, self.labels)


MILLION = Workload("million-init", (12_513, 80), 1000, "init")  # 1 M negatives and 1000 positives
FEWER = replace(MILLION, name="fewer-init", num_positives=300)

# Sized for two cores: one image, or one decoder layer, of what the GPU set holds.
CPU = (
    MILLION,
    replace(MILLION, name="million-trained", scores="trained", relevant=0.01),
    replace(MILLION, name="million-trained-labels", scores="trained", relevant=0.01, labels=True),
    FEWER,
    replace(FEWER, name="fewer-hard", scores="hard"),
    replace(FEWER, name="fewer-ties", scores="ties"),
    replace(FEWER, name="fewer-init-bf16", dtype=torch.bfloat16),
    Workload("proposals", (2048, 81), 500, "init", labels=True),
    Workload("atss-image", (1, 22_000, 80), 156, "trained", relevant=0.1, labels=True),
    Workload("detr-layer", (16, 900, 80), 200, "init", labels=True),
    Workload("lvis-crop", (1, 5_500, 1203), 250, "trained", relevant=0.01, dtype=torch.bfloat16, labels=True),
    Workload("edges", (50_000, 1), 20_000, "hard"),  # pixels of a map: there are about as many positives as negatives
)

RETINANET = Workload("retinanet-init", (2, 200_000, 80), 400, "init", labels=True)
GPU = (
    RETINANET,
    replace(RETINANET, name="retinanet-trained", scores="trained", relevant=0.01),
    replace(RETINANET, name="retinanet-hard", scores="hard"),
    replace(RETINANET, name="retinanet-ties", scores="ties"),
    replace(RETINANET, name="retinanet-init-dense", labels=False),
    replace(RETINANET, name="retinanet-init-bf16", dtype=torch.bfloat16),
    Workload("atss-batch16", (16, 22_000, 80), 2500, "trained", relevant=0.1, labels=True),
    Workload("proposals", (2048, 81), 500, "init", labels=True),
    Workload("detr-aux", (6, 16, 900, 80), 1200, "init", labels=True),
    Workload("lvis", (16, 22_000, 1203), 4000, "trained", relevant=0.01, dtype=torch.bfloat16, labels=True),
    Workload("edges", (320_000, 1), 100_000, "hard"),
)


@dataclass(frozen=True)
class BoxWorkload:
    """Pairs of boxes that overlap more or less."""

    name: str
    num_boxes: int
    dtype: torch.dtype = torch.float32

    def problem(self, seed: int = 0, device: str | torch.device = "cpu") -> Boxes:
        """The workload's `seed`-th drawing."""
        generator = torch.Generator(device).manual_seed(1000 + seed)
        low, size, shift, growth = 20 * torch.rand(4, self.num_boxes, 2, generator=generator, device=device)
        target = torch.cat([low, low + 4 + size], 1)
        pred = torch.cat([low + shift / 4, low + shift / 4 + 4 + growth], 1)
        return Boxes(pred.to(self.dtype), target.to(self.dtype))


def workloads(device: str) -> tuple[Workload, ...]:
    """The set for the ranking losses on a kind of device."""
    return GPU if device == "cuda" else CPU


def pointwise_workloads(device: str) -> tuple[Workload, ...]:
    """The set for the losses that take every logit once: trained scores, as labels."""
    if device == "cuda":
        large = replace(RETINANET, name="retinanet", scores="trained")
        return large, replace(large, name="retinanet-bf16", dtype=torch.bfloat16)
    million = replace(MILLION, name="million", scores="trained", labels=True)
    return million, replace(million, name="million-bf16", dtype=torch.bfloat16)


def box_workloads(device: str) -> tuple[BoxWorkload, ...]:
    """The set for box losses."""
    return (BoxWorkload("boxes", 2**24 if device == "cuda" else 2**18),)


def num_relevant(problem: Problem, delta: float = REACH) -> int:
    """How many negatives score at least min(p) - delta."""
    targets = problem.dense().reshape(-1)
    scores = problem.logits.reshape(-1).float()
    lowest = scores[targets > 0].min() - delta
    return int(((targets == 0) & (scores >= lowest)).sum())

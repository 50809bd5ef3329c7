"""A training step of a detector, of which the classification loss is a part.

The network's outputs become leaves of the loss, so that its forward and backward can be timed apart from the rest: the
network's forward and backward, an L1 loss of the boxes, and the optimizer's step, which has a learning rate of 0 so
that all implementations see the same scores.
"""

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .peers.peer import Loss
from .problems import Problem

EXAMPLES = Path(__file__).parents[1] / "examples"


class StepSample(NamedTuple):
    """Seconds."""

    loss: float
    rest: float

    @property
    def step(self) -> float:
        return self.loss + self.rest

    both = step


class Training:
    """One batch, the network that is trained on it, and labels [B, A] of its anchors: 0..C-1, or C, background."""

    def __init__(self, network: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.network, self.images, self.labels = network, images, labels
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=0)
        with torch.no_grad():
            logits, _ = network(images)
        self.positive = labels < logits.shape[-1]
        generator = torch.Generator().manual_seed(0)
        self.iou = torch.rand(int(self.positive.sum()), generator=generator).to(logits.device) * 0.95 + 0.05
        self.problem = self.problem_of(logits)

    def problem_of(self, logits: Tensor) -> Problem:
        return Problem(logits, self.labels, self.iou, as_labels=True)

    def run(self, loss: Loss, clock: Callable[[], float] = time.perf_counter) -> StepSample:
        """One step."""
        start = self._now(clock)
        logits, deltas = self.network(self.images)
        leaf = logits.detach().requires_grad_()
        before = self._now(clock)
        (gradient,) = torch.autograd.grad(loss(leaf, self.problem_of(leaf)), leaf)
        after = self._now(clock)
        box_loss = deltas[self.positive].abs().mean()
        torch.autograd.backward([logits, box_loss], [gradient, None])
        self.optimizer.step()
        self.optimizer.zero_grad()
        return StepSample(after - before, self._now(clock) - after + before - start)

    def _now(self, clock: Callable[[], float]) -> float:
        if self.images.device.type == "cuda":
            torch.cuda.synchronize()
        return clock()


def example_detector(device: str) -> Training:
    """The detector of `make demo`, on its first batch of 8 scenes of digits, with weights as they begin."""
    # The examples are scripts, not a package.
    sys.path.append(str(EXAMPLES))
    try:
        data, detector, digits = (importlib.import_module(name) for name in ("data", "detector", "digits"))
        evaluate = importlib.import_module("evaluate")
    finally:
        sys.path.remove(str(EXAMPLES))
    training_set = data.TrainingSet(digits.digit_scenes(8, 128, 0), torch.device(device))
    batch = next(training_set.batches(8, torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    network = detector.Detector(10, prior=0.01).to(device, memory_format=torch.channels_last)
    return Training(network, evaluate.normalize(batch.images), batch.labels)


def retinanet(device: str, images: int = 2, side: int = 800) -> Training:
    """torchvision's RetinaNet-R50-FPN without pretrained weights, 80 classes, on noise, 200 positives an image."""
    from torchvision.models.detection import retinanet_resnet50_fpn

    torch.manual_seed(0)
    network = _Heads(retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=80)).to(device)
    batch = torch.randn(images, 3, side, side, device=device)
    with torch.no_grad():
        num_anchors = network(batch)[0].shape[1]
    labels = torch.full((images, num_anchors), 80, device=device)
    for of_image in labels:
        of_image[torch.randperm(num_anchors, device=device)[:200]] = torch.randint(80, (200,), device=device)
    return Training(network, batch, labels)


class _Heads(nn.Module):
    """A RetinaNet without its own losses."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(list(self.backbone(images).values()))
        return found["cls_logits"], found["bbox_regression"]


TRAININGS = {"example detector": example_detector, "RetinaNet-R50": retinanet}

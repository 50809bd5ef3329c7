"""A training step of a detector, of which the classification loss is a part.

It is the network's forward, the loss down to the logits, an L1 loss of the boxes, the network's backward, and a step of
AdamW, which has a learning rate of 0 so that all implementations see the same scores.
"""

import importlib
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from .peers import Loss
from .turns import DEVICE
from .workloads import Made, Problem, detection

EXAMPLES = Path(__file__).parents[1] / "examples"
Network = Callable[[Tensor], tuple[Tensor, Tensor]]  # of images, (logits [B, A, C], box deltas [B, A, 4])


class Training(Problem):
    """One batch and the network that is trained on it; as a problem, its logits."""

    def __init__(self, model: nn.Module, network: Network, images: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            logits, _ = network(images)
        self.positive = labels < logits.shape[-1]
        iou = torch.rand(int(self.positive.sum()), generator=torch.Generator().manual_seed(0)) * 0.95 + 0.05
        super().__init__(**vars(detection(logits, labels, iou.to(logits.device), as_labels=True)))
        self.info |= {"axis": "training", "images": len(images)}
        self.network, self.images = network, images
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0)

    def run(self, loss: Loss) -> None:
        """One step."""
        logits, deltas = self.network(self.images)
        leaf = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf, self.given), leaf)
        torch.autograd.backward([logits, deltas[self.positive].abs().mean()], [gradient, None])
        self.optimizer.step()
        self.optimizer.zero_grad()


@cache
def example_detector() -> Training:
    """The detector of `make demo`, on its first batch of 8 scenes of digits, with weights as they begin."""
    # The examples are scripts, not a package.
    sys.path.append(str(EXAMPLES))
    try:
        data, detector, digits, evaluate = map(importlib.import_module, ("data", "detector", "digits", "evaluate"))
    finally:
        sys.path.remove(str(EXAMPLES))
    training_set = data.TrainingSet(digits.digit_scenes(8, 128, 0), torch.device(DEVICE))
    batch = next(training_set.batches(8, torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    model = detector.Detector(10, prior=0.01).to(DEVICE, memory_format=torch.channels_last)
    return Training(model, model, evaluate.normalize(batch.images), batch.labels)


@cache
def retinanet() -> Training:
    """torchvision's RetinaNet-R50-FPN without pretrained weights, 80 classes, on two images of noise, 400 positives."""
    from torchvision.models.detection import retinanet_resnet50_fpn

    torch.manual_seed(0)
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=80).to(DEVICE)

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        found = model.head(list(model.backbone(images).values()))
        return found["cls_logits"], found["bbox_regression"]

    images = torch.randn(2, 3, 800, 800, device=DEVICE)
    with torch.no_grad():
        labels = torch.full(network(images)[0].shape[:-1], 80, device=DEVICE)
    labels.view(-1)[torch.randperm(labels.numel(), device=DEVICE)[:400]] = torch.randint(80, (400,), device=DEVICE)
    return Training(model, network, images, labels)


TRAININGS = []
if find_spec("sklearn"):  # the scenes are made of its digits
    TRAININGS.append(Made("example detector", lambda seed: example_detector()))
if DEVICE == "cuda" and find_spec("torchvision"):
    TRAININGS.append(Made("RetinaNet-R50", lambda seed: retinanet()))

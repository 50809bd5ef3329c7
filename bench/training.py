"""A training step of a detector, of which the classification loss is a part.

It is the network's forward, the loss down to the logits, an L1 loss of the boxes, the network's backward, and a step of
AdamW, which has a learning rate of 0 so that all implementations see the same scores.
"""

import importlib
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from .peers import Loss
from .turns import DEVICE
from .workloads import Made, Problem, detection

EXAMPLES = Path(__file__).parents[1] / "examples"


class Training(Problem):
    """One batch and the network that is trained on it; as a problem, its logits."""

    def __init__(self, network: nn.Module, images: Tensor, labels: Tensor) -> None:
        """`network` makes logits [B, A, C] and box deltas [B, A, 4] of images."""
        with torch.no_grad():
            logits, _ = network(images)
        self.positive = labels < logits.shape[-1]
        iou = torch.rand(int(self.positive.sum()), generator=torch.Generator().manual_seed(0)) * 0.95 + 0.05
        super().__init__(**vars(detection(logits, labels, iou.to(logits.device), as_labels=True)))
        self.info |= {"axis": "training", "images": len(images)}
        self.network, self.images = network, images
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=0)

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
    network = detector.Detector(10, prior=0.01).to(DEVICE, memory_format=torch.channels_last)
    return Training(network, evaluate.normalize(batch.images), batch.labels)


# The scenes are made of scikit-learn's digits.
TRAININGS = [Made("example detector", lambda seed: example_detector())] if find_spec("sklearn") else []

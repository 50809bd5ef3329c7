"""One training run: the schedule, the progress bar, and how much of the time the loss takes."""

import math
import time
from collections import Counter

import torch
from data import Batch, Dataset, TrainingSet
from detector import Detections, Detector, decode, encode, make_anchors
from evaluate import coco_details, coco_score, detect_split, normalize
from recipes import Matches, Recipe
from torch import Tensor
from tqdm import tqdm

WARM_UP = 0.1  # share of the steps in which the learning rate rises; after that it falls along a cosine


class DivergedError(Exception):
    """The loss is no longer finite."""


def train(
    name: str,
    recipe: Recipe,
    dataset: Dataset,
    training_set: TrainingSet,
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device,
    *,
    validate_every: int = 1,
    quiet: bool = False,
) -> tuple[dict, list[Detections]]:
    """Train with a recipe: what happened, as results.json has it, and the detections on the test split.

    Every loss gets the same initial weights, the same batches and the same number of steps. The validation split is
    measured after every `validate_every` epochs and at the end; a `quiet` training shows no progress.
    """
    recipe.to(device)
    torch.manual_seed(seed)
    model = Detector(len(dataset.categories), recipe.prior).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    num_images = len(training_set.images)
    steps = epochs * math.ceil(num_images / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step / steps))
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.cat(make_anchors(*training_set.images.shape[-2:])).to(device)

    curve = []
    seconds = loss_seconds = 0.0
    bar = tqdm(
        total=epochs * num_images, desc=f"{name:12}", unit="img", dynamic_ncols=True, smoothing=0.05, disable=quiet
    )
    for epoch in range(1, epochs + 1):
        totals = Counter()
        for batch in training_set.batches(batch_size, generator):
            start = _now(device)
            parts, spent = backward(model, recipe, batch, anchors)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            seconds += _now(device) - start
            loss_seconds += spent
            if not all(map(math.isfinite, parts.values())):
                bar.close()
                raise DivergedError(f"{name}: the loss is no longer finite in epoch {epoch}: {parts}")
            totals.update({part: value * len(batch.images) / num_images for part, value in parts.items()})
            bar.set_postfix_str(_postfix(parts, loss_seconds / seconds, curve), refresh=False)
            bar.update(len(batch.images))
        recipe.end_epoch()
        if epoch % validate_every == 0 or epoch == epochs:
            score = coco_score(detect_split(model, dataset.val, device), dataset.val, dataset.categories)
            curve.append({"epoch": epoch, "parts": dict(totals), "ap": score.ap, "ap50": score.ap50})
    bar.set_postfix_str(_postfix(parts, loss_seconds / seconds, curve))
    bar.close()
    detections = detect_split(model, dataset.test, device)
    result = {
        "loss": name,
        **coco_details(detections, dataset.test, dataset.categories),
        "seconds": seconds,
        "images_per_second": epochs * num_images / seconds,
        "loss_share": loss_seconds / seconds,
        "learning_rate": recipe.learning_rate,
        "curve": curve,
    }
    return result, detections


def backward(model: Detector, recipe: Recipe, batch: Batch, anchors: Tensor) -> tuple[dict[str, float], float]:
    """Gradients of one batch: the parts of its loss, and the seconds that the loss took."""
    outputs = model(normalize(batch.images))
    # The loss gets leaves: its own backward ends there, and can be timed apart from the network's.
    leaves = [output.detach().requires_grad_() for output in outputs]
    start = _now(anchors.device)
    parts = recipe(match(*leaves, batch, anchors))
    sum(parts.values()).backward()
    seconds = _now(anchors.device) - start
    torch.autograd.backward(outputs, [leaf.grad for leaf in leaves])
    return {name: part.item() for name, part in parts.items()}, seconds


def match(logits: Tensor, deltas: Tensor, batch: Batch, anchors: Tensor) -> Matches:
    """Put the outputs of the positive anchors beside their targets."""
    image, anchor = ((batch.labels >= 0) & (batch.labels < logits.shape[-1])).nonzero(as_tuple=True)
    deltas, own, boxes = deltas[image, anchor], anchors[anchor], batch.boxes[image, anchor]
    return Matches(logits, batch.labels, deltas, encode(own, boxes), decode(own, deltas), boxes)


def _learning_rate_factor(progress: float) -> float:
    if progress < WARM_UP:
        return (progress + 0.01) / (WARM_UP + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _postfix(parts: dict[str, float], loss_share: float, curve: list[dict]) -> str:
    shown = [f"{part} {value:.3f}" for part, value in parts.items()] + [f"{loss_share:.0%} in loss"]
    if curve:
        shown.append(f"AP {curve[-1]['ap']:.2f} AP50 {curve[-1]['ap50']:.2f}")
    return ", ".join(shown)

"""One training run: the schedule, the progress bar, and how much of the time the loss takes."""

import math
import sys
import time

import torch
from data import Batch, Dataset, TrainingSet
from detector import Detections, Detector, decode, encode, make_anchors
from evaluate import Score, coco_score, detect_split, normalize
from recipes import RECIPES, Matches
from torch import Tensor
from tqdm import tqdm

WARM_UP = 0.1  # share of the steps in which the learning rate rises; after that it falls along a cosine


def train(
    name: str,
    dataset: Dataset,
    training_set: TrainingSet,
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device,
) -> tuple[dict, list[Detections]]:
    """Train with the loss `name`: what happened, as results.json has it, and the detections on the test split.

    Every loss gets the same initial weights, the same batches and the same number of steps.
    """
    recipe = RECIPES[name]().to(device)
    torch.manual_seed(seed)
    model = Detector(len(dataset.categories)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    num_images = len(training_set.images)
    steps = epochs * math.ceil(num_images / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate_factor(step / steps))
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.cat(make_anchors(*training_set.images.shape[-2:])).to(device)

    curve = []
    seconds = loss_seconds = 0.0
    score = Score(math.nan, math.nan)
    bar = tqdm(total=epochs * num_images, desc=f"{name:12}", unit="img", dynamic_ncols=True, smoothing=0.05)
    for epoch in range(1, epochs + 1):
        totals: dict[str, float] = {}
        for batch in training_set.batches(batch_size, generator):
            start = _now(device)
            outputs = model(normalize(batch.images))
            # The loss sees leaves: its own backward ends there, so it can be timed apart from the network's.
            leaves = [output.detach().requires_grad_() for output in outputs]
            loss_start = _now(device)
            parts = recipe(match(*leaves, batch, anchors))
            sum(parts.values()).backward()
            loss_seconds += _now(device) - loss_start
            optimizer.zero_grad()
            torch.autograd.backward(outputs, [leaf.grad for leaf in leaves])
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            seconds += _now(device) - start
            values = {part: value.item() for part, value in parts.items()}
            if not all(map(math.isfinite, values.values())):
                bar.close()
                sys.exit(f"{name}: the loss is no longer finite in epoch {epoch}: {values}")
            for part, value in values.items():
                totals[part] = totals.get(part, 0.0) + value * len(batch.images) / num_images
            bar.set_postfix_str(_postfix(values, loss_seconds / seconds, score), refresh=False)
            bar.update(len(batch.images))
        recipe.end_epoch()
        score = coco_score(detect_split(model, dataset.val, device), dataset.val, dataset.categories)
        curve.append({"epoch": epoch, "parts": totals, "ap": score.ap, "ap50": score.ap50})
    bar.set_postfix_str(_postfix(values, loss_seconds / seconds, score))
    bar.close()
    detections = detect_split(model, dataset.test, device)
    test = coco_score(detections, dataset.test, dataset.categories)
    result = {
        "loss": name,
        "ap": test.ap,
        "ap50": test.ap50,
        "seconds": seconds,
        "images_per_second": epochs * num_images / seconds,
        "loss_share": loss_seconds / seconds,
        "learning_rate": recipe.learning_rate,
        "curve": curve,
    }
    return result, detections


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


def _postfix(parts: dict[str, float], loss_share: float, score: Score) -> str:
    shown = [f"{part} {value:.3f}" for part, value in parts.items()] + [f"{loss_share:.0%} in loss"]
    if not math.isnan(score.ap):
        shown.append(f"AP {score.ap:.2f} AP50 {score.ap50:.2f}")
    return ", ".join(shown)

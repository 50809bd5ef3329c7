"""Train torchvision's RetinaNet, FCOS and Faster R-CNN, small and without pretrained weights, with the losses.

    python examples/train_torchvision.py --model fcos --loss rank_sort
    python examples/train_torchvision.py --data FOLDER --model all --loss all --steps 400 --out out/torchvision

FOLDER holds images/ and instances_{train,val,test}.json. The default is a few steps on scenes of digits, which show
that everything works and train nothing. At the end comes AP on the test split, "stock" with torchvision's own loss.
With --out it is written to results.json, too, and runs that are there already are not repeated.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from data import Dataset, InputError, Split, coco_folder
from detector import Detections
from digits import digit_scenes
from evaluate import coco_score
from results import Results, table
from torch import Tensor, nn
from torchvision_models import MODELS
from torchvision_recipes import RECIPES, Recipe
from tqdm import tqdm

from triton_rankloss.integrations.torchvision import use_loss


def load(arguments: argparse.Namespace) -> Dataset:
    """The user's folder, or scenes of digits."""
    if arguments.data:
        return coco_folder(arguments.data, *arguments.size)
    return digit_scenes(128, 128, 0)


def example(split: Split, index: int, mirror: int, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """An image in 0..1 and its objects, as torchvision takes them: label 0 is the background."""
    image, boxes = split.images[index] / 255, split.boxes[index]
    if mirror:
        image, width = image.flip(-1), image.shape[-1]
        boxes = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1)
    return image.to(device), {"boxes": boxes.to(device), "labels": split.labels[index].to(device) + 1}


def batches(dataset: Dataset, batch_size: int, seed: int, device: torch.device) -> Iterator[tuple[list, list]]:
    """Images and targets, without end: every epoch in another order, each image mirrored or not."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(dataset.train.images), generator=generator).split(batch_size):
            mirror = dataset.flip * torch.randint(2, (len(chosen),), generator=generator)
            chosen_and_mirror = zip(chosen.tolist(), mirror.tolist(), strict=True)
            images, targets = zip(*(example(dataset.train, *pair, device) for pair in chosen_and_mirror), strict=True)
            yield list(images), list(targets)


def build(name: str, recipe: Recipe, dataset: Dataset, arguments: argparse.Namespace) -> nn.Module:
    """A model with the loss of `recipe`."""
    height, width = dataset.train.images.shape[-2:]
    model = MODELS[name](len(dataset.categories), {"min_size": min(width, height), "max_size": max(width, height)})
    losses = recipe.losses()
    if losses:
        use_loss(model, *losses, **recipe.options)
    if name != "faster_rcnn":
        bias = -math.log((1 - recipe.prior) / recipe.prior)
        nn.init.constant_(model.head.classification_head.cls_logits.bias, bias)
    return model.to(arguments.device)


def train(model: nn.Module, dataset: Dataset, recipe: Recipe, seed: int, arguments: argparse.Namespace) -> None:
    """AdamW, the learning rate rising and falling once."""
    steps = arguments.steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.1)
    data = batches(dataset, arguments.batch_size, seed, arguments.device)
    model.train()
    bar = tqdm(range(steps), dynamic_ncols=True, mininterval=1)
    for _ in bar:
        losses = model(*next(data))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix({name: f"{part.item():.3f}" for name, part in losses.items()}, refresh=False)


@torch.no_grad()
def detect(model: nn.Module, split: Split, device: torch.device) -> list[Detections]:
    """Detections of every image, with labels from 0 again; what was found as background is dropped."""
    model.eval()
    detections = []
    for images in split.images.split(8):
        for found in model(list(images.to(device) / 255)):
            keep = found["labels"] > 0
            columns = found["boxes"][keep], found["scores"][keep], found["labels"][keep] - 1
            detections.append(Detections(*(column.cpu() for column in columns)))
    return detections


def run(name: str, loss: str, seed: int, dataset: Dataset, arguments: argparse.Namespace) -> dict:
    """Train and test: every loss of a model has the same weights to start from, and the same batches."""
    print(f"{name}, {loss}, seed {seed}")
    recipe = RECIPES[name][loss]
    torch.manual_seed(seed)
    model = build(name, recipe, dataset, arguments)
    start = time.perf_counter()
    train(model, dataset, recipe, seed, arguments)
    seconds = time.perf_counter() - start
    score = coco_score(detect(model, dataset.test, arguments.device), dataset.test, dataset.categories)
    found = {"model": name, "loss": loss, "seed": seed, **score._asdict()}
    return found | {"learning_rate": recipe.learning_rate, "seconds": seconds}


def main() -> None:
    """Run from the command line."""
    losses = list(dict.fromkeys(loss for recipes in RECIPES.values() for loss in recipes))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[*MODELS, "all"], nargs="+", default=["retinanet"])
    parser.add_argument("--loss", choices=[*losses, "all"], nargs="+", default=["rank_sort"])
    parser.add_argument("--data", type=Path, help="COCO-format folder (default: scenes of handwritten digits)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(256, 192), help="of its images")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="folder of results.json (default: none is written)")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    models = list(MODELS) if "all" in arguments.model else arguments.model
    chosen = losses if "all" in arguments.loss else arguments.loss
    try:
        dataset = load(arguments)
        height, width = dataset.train.images.shape[-2:]
        settings = {"data": dataset.name, "size": [width, height], "steps": arguments.steps}
        settings["batch_size"] = arguments.batch_size
        results = Results(arguments.out, ("torchvision",), settings) if arguments.out else None
    except InputError as error:
        parser.error(str(error))
    runs = [
        (name, loss, seed) for seed in arguments.seed for name in models for loss in chosen if loss in RECIPES[name]
    ]
    if not runs:
        parser.error(f"{' '.join(models)} is not trained with {' '.join(chosen)} here; see torchvision_recipes.py")
    found = []
    for name, loss, seed in runs:
        if results is None:
            found.append(run(name, loss, seed, dataset, arguments))
        elif not results.has(name, loss, seed):
            results.add(run(name, loss, seed, dataset, arguments))
    print(table(found if results is None else results.runs))


if __name__ == "__main__":
    main()

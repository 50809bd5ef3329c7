"""Train torchvision's RetinaNet, FCOS and Faster R-CNN, small and without pretrained weights, with the losses.

    python examples/train_torchvision.py --model fcos --loss rank_sort
    python examples/train_torchvision.py --data FOLDER --model all --loss all --steps 400 --out out/torchvision

FOLDER holds images/ and instances_{train,val,test}.json. The default is a few steps on scenes of digits, which show
that everything works and train nothing. AP on the test split is printed, and with --out written to results.json, the
runs of which are not repeated. "stock" is torchvision's own loss.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from data import Dataset, InputError, Split, coco_folder
from detector import Detections
from digits import digit_scenes
from evaluate import coco_score
from results import Results, table
from torch import Tensor, nn
from torchvision_models import MODELS
from tqdm import tqdm

import triton_rankloss as rankloss
from triton_rankloss.integrations.torchvision import use_loss


class Recipe(NamedTuple):
    """What use_loss is given, called with the steps of an epoch, and the learning rate; None is torchvision's own."""

    losses: Callable[[int], tuple[nn.Module, ...]] | None
    learning_rate: float = 2e-3
    options: dict[str, bool] = {}


def ap(steps: int):
    return rankloss.APLoss(), rankloss.GeneralizedBoxIoULoss()


def alrp(steps: int):
    return (rankloss.ALRPLoss(steps_per_epoch=steps),)


def rank_sort(steps: int):
    return (rankloss.RankSortLoss(),)


DENSE = {
    "stock": Recipe(None),
    "ap": Recipe(ap),
    "alrp": Recipe(alrp),
    "rank_sort": Recipe(rank_sort),
    "dr": Recipe(lambda _: (rankloss.DRLoss(per_image=True), rankloss.GeneralizedBoxIoULoss())),
    "iou_balanced": Recipe(lambda _: (rankloss.IoUBalancedFocalLoss(), rankloss.IoUBalancedSmoothL1Loss())),
    "harmonic": Recipe(lambda _: (rankloss.HarmonicDetectionLoss(classification="focal"),)),
}
RECIPES = {
    "retinanet": DENSE,
    "fcos": DENSE | {f"{name}_no": recipe._replace(options={"centerness": False}) for name, recipe in DENSE.items() if name != "stock"},
    "faster_rcnn": {
        "stock": Recipe(None),
        "ap": Recipe(ap),
        "alrp": Recipe(alrp),
        "rank_sort": Recipe(rank_sort),
        "iou_balanced": Recipe(lambda _: (rankloss.IoUBalancedCrossEntropyLoss(), rankloss.IoUBalancedSmoothL1Loss())),
        "harmonic": Recipe(lambda _: (rankloss.HarmonicDetectionLoss(classification="softmax"),)),
    },
}


def load(arguments: argparse.Namespace) -> Dataset:
    """The user's folder, or scenes of digits."""
    if arguments.data:
        return coco_folder(arguments.data, *arguments.size)
    return digit_scenes(128, 128, 0)


def batches(dataset: Dataset, arguments: argparse.Namespace, seed: int) -> Iterator[tuple[list, list]]:
    """Images and targets as torchvision takes them: epoch after epoch in random order, mirrored at random."""
    split, generator = dataset.train, torch.Generator().manual_seed(seed)
    while True:
        for chosen in torch.randperm(len(split.images), generator=generator).split(arguments.batch_size):
            mirror = (torch.rand(len(chosen), generator=generator) < 0.5 * dataset.flip).tolist()
            pairs = [example(split, i, flip, arguments.device) for i, flip in zip(chosen.tolist(), mirror, strict=True)]
            images, targets = zip(*pairs, strict=True)
            yield list(images), list(targets)


def example(split: Split, index: int, mirror: bool, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """An image in 0..1, and its objects; label 0 is torchvision's background."""
    image, boxes = split.images[index] / 255, split.boxes[index]
    if mirror:
        image, width = image.flip(-1), image.shape[-1]
        boxes = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1)
    return image.to(device), {"boxes": boxes.to(device), "labels": split.labels[index].to(device) + 1}


def train(model: nn.Module, dataset: Dataset, arguments: argparse.Namespace, seed: int, learning_rate: float, name: str) -> None:
    """AdamW, the learning rate rising and falling once."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=arguments.steps, pct_start=0.1)
    model.train()
    bar = tqdm(zip(range(arguments.steps), batches(dataset, arguments, seed)), desc=name, total=arguments.steps, mininterval=5)
    for _, (images, targets) in bar:
        losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix({part: f"{value.item():.3f}" for part, value in losses.items()}, refresh=False)


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


def run(dataset, name, loss, seed, arguments):
    """One."""
    height, width = dataset.train.images.shape[-2:]
    torch.manual_seed(seed)
    model = MODELS[name](len(dataset.categories), {"min_size": min(width, height), "max_size": max(width, height)})
    recipe = RECIPES[name][loss]
    if recipe.losses is not None:
        use_loss(model, *recipe.losses(-(-len(dataset.train.images) // arguments.batch_size)), **recipe.options)
    model.to(arguments.device)
    start = time.perf_counter()
    lr = arguments.lr or recipe.learning_rate
    train(model, dataset, arguments, seed, lr, f"{name} {loss}")
    seconds = time.perf_counter() - start
    score = coco_score(detect(model, dataset.test, arguments.device), dataset.test, dataset.categories)
    print("RESULT", name, loss, lr, arguments.steps, seed, *(f"{x:.3f}" for x in score), f"{seconds:.0f}", flush=True)
    return {"model": name, "loss": loss, "seed": seed, **score._asdict(), "seconds": seconds, "learning_rate": lr}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["retinanet"])
    parser.add_argument("--loss", nargs="+", default=["rank_sort"])
    parser.add_argument("--data", type=Path, help="COCO-format folder (default: scenes of handwritten digits)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(256, 192), help="of its images")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    try:
        dataset = load(arguments)
    except InputError as error:
        parser.error(str(error))
    for seed in arguments.seed:
        for model in arguments.model:
            for loss in arguments.loss:
                run(dataset, model, loss, seed, arguments)


if __name__ == "__main__":
    main()

"""Train an Ultralytics YOLO from scratch, by its own trainer, with its own loss of the classes or a ranking loss.

    python examples/train_ultralytics.py --loss rank_sort
    python examples/train_ultralytics.py --data FOLDER --loss all --out out/ultralytics     # a COCO-format folder

FOLDER holds images/ and instances_{train,val,test}.json. The default is a few epochs on scenes of digits, which show
that everything works and train little. What was killed is continued: finished runs are not repeated, and an unfinished
one is resumed from its last checkpoint. AP is that of Ultralytics' own validation, on the test split.
"""

import argparse
import os
import time
from pathlib import Path
from typing import NamedTuple

from data import Dataset, InputError, Split, coco_folder
from digits import digit_scenes
from PIL import Image
from results import Results, check_writable, table
from torch import nn

# Read once, when ultralytics is imported: nothing is downloaded or reported, and no newer version looked for.
os.environ["YOLO_OFFLINE"] = "true"

from ultralytics import YOLO
from ultralytics.utils import YAML

import triton_rankloss as rankloss
from triton_rankloss.integrations.ultralytics import use_loss


class Recipe(NamedTuple):
    """A loss of the classes, and its weight beside those of the boxes."""

    loss: nn.Module | None
    cls: float


RECIPES = {
    "bce": Recipe(None, 0.5),  # Ultralytics' own, with its default
    "ap": Recipe(rankloss.APLoss(), 3.0),
    "rank_sort": Recipe(rankloss.RankSortLoss(), 3.0),
}


def yolo_folder(dataset: Dataset, folder: Path) -> Path:
    """The file that describes `dataset` to Ultralytics, with its images and labels, all written to `folder`."""
    for name, split in (("train", dataset.train), ("val", dataset.val), ("test", dataset.test)):
        _write_split(split, folder / "images" / name, folder / "labels" / name)
    file = folder / "data.yaml"
    names = {label: category["name"] for label, category in enumerate(dataset.categories)}
    paths = {name: f"images/{name}" for name in ("train", "val", "test")}
    YAML.save(file, {"path": str(folder.resolve()), **paths, "names": names})
    return file


def _write_split(split: Split, images: Path, labels: Path) -> None:
    """Images as PNG; of every object a line: its class, centre and size, in parts of the image."""
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    height, width = split.images.shape[-2:]
    for i, (pixels, boxes, classes) in enumerate(zip(split.images, split.boxes, split.labels, strict=True)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(images / f"{i:06}.png")
        lines = []
        for label, (x1, y1, x2, y2) in zip(classes.tolist(), boxes.tolist(), strict=True):
            centre, size = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height), ((x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join(map(str, (label, *centre, *size))) + "\n")
        (labels / f"{i:06}.txt").write_text("".join(lines))


def train(file: Path, loss: str, folder: Path, model_name: str, options: dict) -> Path:
    """The best checkpoint of a run, which is resumed where there is an unfinished one."""
    recipe = RECIPES[loss]
    weights = folder / "weights"
    resume = (weights / "last.pt").exists()
    model = YOLO(weights / "last.pt" if resume else model_name)
    if resume and any(model.ckpt["train_args"][key] != options[key] for key in options.keys() - {"device"}):
        raise InputError(f"{folder} was trained with other settings: remove it or choose another folder")
    if resume and model.ckpt["epoch"] < 0:  # trained to the end
        return weights / "best.pt"
    if recipe.loss is not None:
        use_loss(model, recipe.loss)
    model.train(
        data=file,
        cls=recipe.cls,
        workers=0,
        cache="ram",
        amp=False,  # its check downloads a model
        pretrained=False,
        plots=False,
        project=folder.parent.resolve(),
        name=folder.name,
        exist_ok=True,
        resume=resume,
        **options,
    )
    return weights / "best.pt"


def validate(file: Path, checkpoint: Path, options: dict) -> dict[str, float]:
    """AP, AP50 and AP75 of the test split, by Ultralytics' own validation."""
    folder = {"project": checkpoint.parents[1].resolve(), "name": "test", "exist_ok": True}
    shared = {"imgsz": options["imgsz"], "device": options["device"]}
    boxes = YOLO(checkpoint).val(data=file, split="test", plots=False, **shared, **folder).box
    return {"ap": round(boxes.map, 4), "ap50": round(boxes.map50, 4), "ap75": round(boxes.map75, 4)}


def train_all(arguments: argparse.Namespace) -> None:
    """Every loss that is asked for and not done yet."""
    check_writable(arguments.out)
    if arguments.data:
        dataset = coco_folder(arguments.data, *arguments.size)
    else:
        dataset = digit_scenes(128, 128, seed=0)
        arguments.size = (128, 128)
    settings = {
        "data": dataset.name,
        "size": list(arguments.size),
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
    }
    results = Results(arguments.out, ("torchvision", "ultralytics"), settings)
    file = yolo_folder(dataset, arguments.out / "data")
    options = {
        "epochs": arguments.epochs,
        "imgsz": max(arguments.size),
        "batch": arguments.batch_size,
        "nbs": arguments.batch_size,  # a step per batch: the default adds up 64 images, many of a small training set
        "fliplr": 0.5 if dataset.flip else 0.0,
        "seed": arguments.seed,
        "device": arguments.device,
    }
    name = Path(arguments.model).stem
    for loss in RECIPES if "all" in arguments.loss else arguments.loss:
        if results.has(name, loss, arguments.seed):
            continue
        start = time.perf_counter()
        best = train(file, loss, arguments.out / f"{name}-{loss}-{arguments.seed}", arguments.model, options)
        score = validate(file, best, options)
        seconds = round(time.perf_counter() - start)
        run = {
            "model": name,
            "loss": loss,
            "seed": arguments.seed,
            "cls": RECIPES[loss].cls,
            **score,
            "seconds": seconds,
        }
        results.add(run)
    print(table(results.runs))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", nargs="+", choices=[*RECIPES, "all"], default=["all"])
    parser.add_argument("--model", default="yolov8n.yaml", help="a name that Ultralytics knows, or a file")
    parser.add_argument("--data", type=Path, help="COCO-format folder (default: scenes of handwritten digits)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(256, 192), help="of its images")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="as Ultralytics names it: cpu, 0, 0,1")
    parser.add_argument("--out", type=Path, default=Path("out/ultralytics"))
    arguments = parser.parse_args()
    try:
        train_all(arguments)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

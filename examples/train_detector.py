"""Train a small detector with any of the losses and compare them.

    python examples/train_detector.py                                    # all losses, digits made on the spot
    python examples/train_detector.py --loss rank_sort --data FOLDER     # a COCO-format folder

FOLDER holds images/ and instances_{train,val,test}.json. AP is measured on the validation split after every epoch (the
curves) and on the test split at the end (the table). OUT receives results.json, curves.png and examples_LOSS.png.
"""

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

# Before torch starts its threads: by default they spin while they wait, and on cores shared with anything else that
# makes steps this small many times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from data import InputError, TrainingSet, coco_folder
from digits import digit_scenes
from plots import plot_curves, plot_examples
from recipes import RECIPES
from training import train

SCENE_SIZE = 128


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=[*RECIPES, "all"], default="all")
    parser.add_argument("--data", type=Path, help="COCO-format folder (default: scenes of handwritten digits)")
    parser.add_argument("--epochs", type=_positive, help="default: 8 for digits, 40 for a folder")
    parser.add_argument("--batch-size", type=_positive, default=8)
    parser.add_argument(
        "--size", type=_side, nargs=2, metavar=("W", "H"), default=(256, 192), help="of a folder's images"
    )
    parser.add_argument("--scenes", type=_positive, default=448, help="number of digit scenes to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("out/detector"))
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _side(text: str) -> int:
    value = _positive(text)
    if value % 32:
        raise argparse.ArgumentTypeError(f"must be a multiple of 32, got {value}")
    return value


def _device(text: str) -> torch.device:
    try:
        torch.empty(1, device=text)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f"cannot use {text!r}: {str(error).splitlines()[0]}") from error
    return torch.device(text)


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder whose files move to `folder` together at the end; after a failure nothing is left of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = tempfile.TemporaryDirectory(prefix=".staging-", dir=folder)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    with staging:
        yield Path(staging.name)
        for path in Path(staging.name).iterdir():
            path.replace(folder / path.name)


def table(results: list[dict]) -> str:
    """The losses beside each other."""
    lines = [f"{'loss':14}{'AP':>7}{'AP50':>7}{'train s':>9}{'images/s':>10}{'in loss':>9}"]
    for r in results:
        lines.append(
            f"{r['loss']:14}{r['ap']:7.3f}{r['ap50']:7.3f}{r['seconds']:9.1f}"
            f"{r['images_per_second']:10.0f}{r['loss_share']:9.1%}"
        )
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> None:
    """Train with each loss, print the table, write the results."""
    if arguments.data:
        dataset = coco_folder(arguments.data, *arguments.size)
    else:
        dataset = digit_scenes(arguments.scenes, SCENE_SIZE, arguments.seed)
    epochs = arguments.epochs or (40 if arguments.data else 8)
    settings = {"epochs": epochs, "batch_size": arguments.batch_size, "seed": arguments.seed}
    with staged(arguments.out) as staging:
        training_set = TrainingSet(dataset, arguments.device)
        results = []
        for name in RECIPES if arguments.loss == "all" else [arguments.loss]:
            result, detections = train(name, dataset, training_set, **settings, device=arguments.device)
            results.append(result)
            plot_examples(staging / f"examples_{name}.png", name, dataset, detections)
        plot_curves(staging / "curves.png", results)
        summary = {"data": dataset.name, "train_images": len(training_set.images), **settings, "results": results}
        (staging / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(table(results))
    print(f"written to {arguments.out}: results.json, curves.png, examples_LOSS.png")


def main() -> None:
    """Run from the command line."""
    parser = make_parser()
    try:
        run(parser.parse_args())
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

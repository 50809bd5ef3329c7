"""Train a small detector with any of the losses and compare them.

    python examples/train_detector.py                                    # all losses, digits made on the spot
    python examples/train_detector.py --loss rank_sort --data FOLDER     # a COCO-format folder

FOLDER holds images/ and instances_{train,val,test}.json. AP is measured on the validation split after every epoch (the
curves) and on the test split at the end (the table). OUT receives results.json, curves.png, examples_LOSS.png and, of
several losses, examples.png with a row of images for each.
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
from results import check_writable
from training import DivergedError, train

SCENE_SIZE = 128


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=[*RECIPES, "all"], nargs="+", default=["all"])
    parser.add_argument("--data", type=Path, help="COCO-format folder (default: scenes of handwritten digits)")
    parser.add_argument("--epochs", type=positive_integer, help="default: 8 for digits, 20 for a folder")
    parser.add_argument("--batch-size", type=positive_integer, default=8)
    parser.add_argument(
        "--size", type=multiple_of_32, nargs=2, metavar=("W", "H"), default=(256, 192), help="of a folder's images"
    )
    parser.add_argument("--scenes", type=positive_integer, default=448, help="number of digit scenes to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch_device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("out/detector"))
    return parser


def positive_integer(text: str) -> int:
    """From the command line, and likewise below."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def multiple_of_32(text: str) -> int:
    """As the detector's coarsest stride wants."""
    value = positive_integer(text)
    if value % 32:
        raise argparse.ArgumentTypeError(f"must be a multiple of 32, got {value}")
    return value


def torch_device(text: str) -> torch.device:
    """One that works here."""
    try:
        torch.empty(1, device=text)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f"cannot use {text!r}: {str(error).splitlines()[0]}") from error
    return torch.device(text)


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder whose files move to `folder` together at the end; after a failure none do."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".staging-", dir=folder) as staging:
        yield Path(staging)
        for path in Path(staging).iterdir():
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
    check_writable(arguments.out)
    if arguments.data:
        dataset = coco_folder(arguments.data, *arguments.size)
    else:
        dataset = digit_scenes(arguments.scenes, SCENE_SIZE, arguments.seed)
    training_set = TrainingSet(dataset, arguments.device)
    epochs = arguments.epochs or (20 if arguments.data else 8)
    settings = {"epochs": epochs, "batch_size": arguments.batch_size, "seed": arguments.seed}
    names = RECIPES if "all" in arguments.loss else dict.fromkeys(arguments.loss)
    runs = [train(name, RECIPES[name](), dataset, training_set, **settings, device=arguments.device) for name in names]
    results = [result for result, _ in runs]
    summary = {"data": dataset.name, "train_images": len(training_set.images), **settings, "results": results}
    with staged(arguments.out) as folder:
        (folder / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
        plot_curves(folder / "curves.png", results)
        for result, detections in runs:
            plot_examples(folder / f"examples_{result['loss']}.png", dataset, {result["loss"]: detections})
        if len(runs) > 1:
            found = {result["loss"]: detections for result, detections in runs}
            plot_examples(folder / "examples.png", dataset, found)
    print(table(results))
    print(f"written to {arguments.out}: results.json and pictures")


def main() -> None:
    """Run from the command line."""
    parser = make_parser()
    try:
        run(parser.parse_args())
    except (InputError, DivergedError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

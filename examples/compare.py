"""Compare the losses: many trainings, over seeds and settings, with intervals.

    python examples/compare.py digits                       # every loss, five seeds, on scenes of digits
    python examples/compare.py folder --data FOLDER         # the same on a COCO-format folder
    python examples/compare.py imbalance                    # rare classes, few and many positives
    python examples/compare.py tuning                       # learning rates; alpha and gamma of focal loss

Results go to OUT/EXPERIMENT/results.json after every training; a command that was killed goes on where it stopped.
compare_page.py makes plots and tables of them. A training takes one thread: give --workers as many as there are cores.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import lru_cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from data import Dataset, InputError, TrainingSet, coco_folder
from digits import digit_scenes
from experiments import EXPERIMENTS, Experiment, Run
from recipes import RECIPES
from results import Results
from tqdm import tqdm
from train_detector import SCENE_SIZE, Parser, positive_integer
from training import DivergedError, train

SCENES = 448
SIZE = 256, 192
BATCH_SIZE = 8
POINTS = 8  # of a curve


def run_one(epochs: int, folder: Path | None, run: Run) -> dict:
    """Train on one thread; what results.json keeps of it."""
    torch.set_num_threads(1)
    dataset, training_set = load(folder, run.seed, run.imbalance, run.top_k)
    recipe = RECIPES[run.loss](**dict(run.options))
    recipe.learning_rate *= run.learning_rate
    if run.box_weight != 1:
        recipe.box_weight *= run.box_weight
    how: dict = {"epochs": epochs, "batch_size": BATCH_SIZE, "seed": run.seed, "device": torch.device("cpu")}
    labels = training_set.labels
    share = ((labels >= 0) & (labels < len(dataset.categories))).float().mean().item()
    key = {"model": run.setting, "loss": run.row, "seed": run.seed, "positive_share": share}
    every = max(1, epochs // POINTS)
    try:
        result, _ = train(run.row, recipe, dataset, training_set, **how, validate_every=every, quiet=True)
    except DivergedError as error:
        return key | nothing(dataset, epochs) | {"diverged": str(error)}
    for point in result["curve"]:
        point["ap"], point["ap50"] = round(point["ap"], 4), round(point["ap50"], 4)
        del point["parts"]
    return key | result


def nothing(dataset: Dataset, epochs: int) -> dict:
    """What a training that did not come to its end counts as."""
    points = [*range(max(1, epochs // POINTS), epochs, max(1, epochs // POINTS)), epochs]
    return {
        "ap": 0.0,
        "ap50": 0.0,
        "ap75": 0.0,
        "by_iou": [0.0] * 10,
        "by_class": {category["name"]: 0.0 for category in dataset.categories},
        "correlation": 0.0,
        "curve": [{"epoch": epoch, "ap": 0.0, "ap50": 0.0} for epoch in points],
    }


@lru_cache(maxsize=1)
def load(folder: Path | None, seed: int, imbalance: float, top_k: int) -> tuple[Dataset, TrainingSet]:
    """Of a seed and a setting; the losses, which come one after the other, share it."""
    dataset = coco_folder(folder, *SIZE) if folder else digit_scenes(SCENES, SCENE_SIZE, seed, imbalance)
    return dataset, TrainingSet(dataset, torch.device("cpu"), top_k)


def missing(experiment: Experiment, results: Results, begun: set[Run]) -> Iterator[Run]:
    """What is neither done nor begun; `runs` is asked again each time, since it may depend on what is done."""
    for run in experiment.runs(results.runs):
        if run not in begun and not results.has(run.setting, run.row, run.seed):
            yield run


def main() -> None:
    """Run from the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--data", type=Path, help="COCO-format folder, for the experiment 'folder' alone")
    parser.add_argument("--epochs", type=positive_integer, help="default: 8 for digits, 20 for a folder")
    parser.add_argument("--workers", type=positive_integer, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("out/compare"))
    arguments = parser.parse_args()
    experiment = EXPERIMENTS[arguments.experiment]
    if experiment.on_digits != (arguments.data is None):
        parser.error("--data belongs to the experiment 'folder', and 'folder' needs it")
    experiment = experiment._replace(epochs=arguments.epochs or experiment.epochs)
    name = arguments.data.resolve().name if arguments.data else "digits"
    settings = {"data": name, "epochs": experiment.epochs, "batch_size": BATCH_SIZE}
    try:
        if arguments.data:
            load(arguments.data, 0, 1.0, 9)  # what is wrong with a folder is said before any process starts
        results = Results(arguments.out / arguments.experiment, (), settings)
    except InputError as error:
        parser.error(str(error))
    begun: set[Run] = set()
    working: set[Future] = set()
    bar = tqdm(total=len(results.runs), initial=len(results.runs), desc=arguments.experiment, unit="training")
    with ProcessPoolExecutor(arguments.workers, get_context("spawn")) as pool:
        while True:
            waiting = list(missing(experiment, results, begun))
            bar.total = len(results.runs) + len(working) + len(waiting)
            for run in islice(waiting, arguments.workers - len(working)):
                begun.add(run)
                working.add(pool.submit(run_one, experiment.epochs, arguments.data, run))
            bar.refresh()
            if not working:
                break
            done, working = wait(working, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                results.add(result)
                bar.set_postfix_str(f"{result['model']}, {result['loss']}: AP {result['ap']:.3f}", refresh=False)
                bar.update()
    bar.close()
    print(f"{results.path}: {len(results.runs)} trainings")


if __name__ == "__main__":
    main()

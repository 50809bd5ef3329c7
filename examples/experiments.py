"""What compare.py runs: each experiment is a list of trainings, which may depend on what is done already."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

from recipes import RECIPES

LOSSES = tuple(RECIPES)
WITHOUT_KNOBS = ("ap", "alrp", "rank_sort", "dr")  # the losses of which the papers claim that they need no tuning


class Run(NamedTuple):
    """One training; what is not said is as in the recipe of the loss."""

    setting: str  # what the experiment varies, as its tables show it
    loss: str
    seed: int
    options: tuple[tuple[str, float], ...] = ()  # hyper-parameters of the recipe
    learning_rate: float = 1.0  # times that of the recipe
    box_weight: float = 1.0  # likewise
    imbalance: float = 1.0  # of the classes in the training split, most frequent over rarest
    top_k: int = 9  # anchors of a level that may become positives of an object
    name: str = ""  # of its row in the tables, where that is not the loss

    @property
    def row(self) -> str:
        """Under which name its result is kept."""
        return self.name or self.loss


class Experiment(NamedTuple):
    """Runs over the same data, the same number of epochs each."""

    on_digits: bool  # generated scenes, or the folder of the user
    epochs: int
    runs: Callable[[list[dict]], Iterator[Run]]  # given what is done


SEEDS_OF_RECIPES = 5
BEFORE = "focal, smooth L1"
WITH_FACTORS = ("iou_balanced", "harmonic")  # what BEFORE becomes with factors of IoU, or of the other task
CONTROLS: dict[str, dict] = {  # how much of a difference from focal loss is one of the boxes' weight or kind of loss
    "focal, boxes x 2": {"box_weight": 2.0},
    # The IoU-balanced recipe weighs a positive by 0.5 IoU^1.5: 0.36 at an IoU of 0.8.
    BEFORE: {"options": (("smooth_l1", True), ("box_weight", 0.36))},
}
ROWS = ("focal", *CONTROLS, *LOSSES[1:])


def recipes(_: list[dict]) -> Iterator[Run]:
    """Each loss by its recipe, and focal loss with other boxes."""
    for seed, row in product(range(SEEDS_OF_RECIPES), ROWS):
        if row in CONTROLS:
            yield Run("recipe", "focal", seed, name=row, **CONTROLS[row])
        else:
            yield Run("recipe", row, seed)


IMBALANCES = (1.0, 10.0, 100.0)
TOP_KS = (1, 3, 25)  # 9 is the setting of the imbalances
FOCAL_VARIANTS = tuple((("alpha", alpha), ("gamma", gamma)) for alpha, gamma in product((0.25, 0.5, 0.75), (1.0, 2.0)))
PUBLISHED = FOCAL_VARIANTS[1]
SEEDS_OF_IMBALANCE = 3


def name_of(variant: tuple[tuple[str, float], ...]) -> str:
    """Of focal loss."""
    return "focal " + " ".join(f"{name} {value:g}" for name, value in variant)


def imbalance(done: list[dict]) -> Iterator[Run]:
    """Rare classes, then few and many positives; focal loss as published, and tuned on the validation split.

    Tuned: all variants with the first seed, and the best of them in the setting with the others.
    """
    settings: list[tuple[str, dict]] = [(f"classes {ratio:g}:1", {"imbalance": ratio}) for ratio in IMBALANCES]
    settings += [(f"top {top_k} anchors", {"top_k": top_k}) for top_k in TOP_KS]
    for seed, (setting, data) in product(range(SEEDS_OF_IMBALANCE), settings):
        for loss in ("focal", *WITHOUT_KNOBS):
            yield Run(setting, loss, seed, **data)
        best = tuned(setting, done)
        for variant in FOCAL_VARIANTS if seed == 0 else (best,):
            if variant is not None and variant != PUBLISHED:
                yield Run(setting, "focal", seed, options=variant, name=name_of(variant), **data)


def tuned(setting: str, done: list[dict]) -> tuple[tuple[str, float], ...] | None:
    """The variant of focal loss that is best on the validation split with the first seed, once all have been run."""
    found = {run["loss"]: run["curve"][-1]["ap"] for run in done if run["model"] == setting and run["seed"] == 0}
    names = {variant: "focal" if variant == PUBLISHED else name_of(variant) for variant in FOCAL_VARIANTS}
    if not found.keys() >= set(names.values()):
        return None
    return max(FOCAL_VARIANTS, key=lambda variant: found[names[variant]])


LEARNING_RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
BOX_WEIGHTS = (0.5, 2.0, 4.0)
WITH_BOX_WEIGHT = ("focal", "ap", "dr", "iou_balanced", "harmonic")  # the others balance their boxes themselves


def tuning(_: list[dict]) -> Iterator[Run]:
    """Every loss over learning rates and weights of the boxes; focal loss over alpha and gamma."""
    for seed in range(2):
        for rate, loss in product(LEARNING_RATES, LOSSES):
            yield Run(f"learning rate x {rate:g}", loss, seed, learning_rate=rate)
        for weight, loss in product(BOX_WEIGHTS, WITH_BOX_WEIGHT):
            yield Run(f"box weight x {weight:g}", loss, seed, box_weight=weight)
        for alpha, gamma in product((0.1, 0.25, 0.5, 0.75), (0.0, 1.0, 2.0)):
            yield Run(f"alpha {alpha:g} gamma {gamma:g}", "focal", seed, options=(("alpha", alpha), ("gamma", gamma)))


EXPERIMENTS = {
    "digits": Experiment(on_digits=True, epochs=8, runs=recipes),
    "folder": Experiment(on_digits=False, epochs=20, runs=recipes),
    "imbalance": Experiment(on_digits=True, epochs=8, runs=imbalance),
    "tuning": Experiment(on_digits=True, epochs=8, runs=tuning),
}

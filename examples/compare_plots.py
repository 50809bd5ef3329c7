"""Plots of compare.py's results: intervals, curves, IoU thresholds, classes, imbalance, tuning."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib
from experiments import (
    BEFORE,
    BOX_WEIGHTS,
    CONTROLS,
    IMBALANCES,
    LEARNING_RATES,
    LOSSES,
    ROWS,
    TOP_KS,
    WITH_BOX_WEIGHT,
    WITH_FACTORS,
    WITHOUT_KNOBS,
)
from scipy.stats import t as student

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from plots import STYLES

STYLE_OF = {
    loss: {"ls": line, "marker": marker, "ms": 5, "color": f"C{i}", "label": loss}
    for i, (loss, (line, marker)) in enumerate(
        zip((*LOSSES, "focal tuned", *CONTROLS), [*STYLES, ("--", "*"), (":", "o"), (":", "s")], strict=True)
    )
}
IOU_THRESHOLDS = [0.5 + 0.05 * i for i in range(10)]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; for two values, which say little, no width."""
    if len(values) < 3:
        return statistics.mean(values), math.nan
    spread = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(student.ppf(0.975, len(values) - 1)) * spread


def plot_recipes(path: Path, runs: list[dict]) -> None:
    """What every loss reaches by its recipe: AP by seed, curves, AP by IoU threshold, score against IoU."""
    losses = [loss for loss in ROWS if any(run["loss"] == loss for run in runs)]
    _, ((points, curves), (thresholds, order)) = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    for i, loss in enumerate(losses):
        of_loss = [run for run in runs if run["loss"] == loss]
        mean, half = interval([run["ap"] for run in of_loss])
        style = STYLE_OF[loss]
        points.errorbar(mean, -i, xerr=half, capsize=4, **style)
        points.plot([run["ap"] for run in of_loss], [-i + 0.25] * len(of_loss), "|", color=style["color"])
        epochs = [point["epoch"] for point in of_loss[0]["curve"]]
        means = [statistics.mean(run["curve"][k]["ap"] for run in of_loss) for k in range(len(epochs))]
        curves.plot(epochs, means, **style)
        above_focal = [
            statistics.mean(run["by_iou"][k] for run in of_loss)
            - statistics.mean(run["by_iou"][k] for run in runs if run["loss"] == "focal")
            for k in range(10)
        ]
        thresholds.plot(IOU_THRESHOLDS, above_focal, **style)
        (x, width), (y, height) = (
            interval([run["correlation"] for run in of_loss]),
            interval([run["by_iou"][5] for run in of_loss]),
        )
        order.errorbar(x, y, xerr=width, yerr=height, capsize=3, **style)
    points.set_yticks([-i for i in range(len(losses))], losses)
    points.set(title="AP of the test split: mean, 95 % interval, every seed", xlabel="AP")
    curves.set(title="AP of the validation split, mean over the seeds", xlabel="epoch", ylabel="AP")
    thresholds.set(title="AP by IoU threshold, less that of focal loss", xlabel="IoU threshold")
    order.set(
        title="Do scores know the boxes? Mean and 95 % interval",
        xlabel="rank correlation of score and IoU of the detections that hit",
        ylabel="AP at IoU 0.75",
    )
    for panel in (points, curves, thresholds, order):
        panel.grid(alpha=0.3)
    curves.legend(fontsize=9, ncols=2)
    _save(path)


def has_factors(runs: list[dict]) -> bool:
    """Whether the losses that promise better boxes were trained, and what they are without their factors."""
    return {BEFORE, *WITH_FACTORS} <= {run["loss"] for run in runs}


def plot_localization(path: Path, runs: list[dict]) -> None:
    """What factors of IoU change within a seed: AP by IoU threshold, and whether scores know the boxes."""
    before = {run["seed"]: run for run in runs if run["loss"] == BEFORE}
    _, (thresholds, order) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", width_ratios=(3, 2))
    for i, loss in enumerate(WITH_FACTORS):
        pairs = [(run, before[run["seed"]]) for run in runs if run["loss"] == loss and run["seed"] in before]
        style = STYLE_OF[loss]
        changes = [interval([run["by_iou"][k] - old["by_iou"][k] for run, old in pairs]) for k in range(10)]
        means, halves = zip(*changes, strict=True)
        # Side by side, so that the intervals can be told apart.
        thresholds.errorbar([x + 0.006 * i for x in IOU_THRESHOLDS], means, yerr=halves, capsize=3, **style)
        for run, old in pairs:
            order.plot([2 * i, 2 * i + 1], [old["correlation"], run["correlation"]], **style | {"label": None})
    thresholds.axhline(0, color="0.4", lw=1)
    thresholds.set(title="AP by IoU threshold: change, 95 % interval", xlabel="IoU threshold")
    thresholds.legend(fontsize=9)
    order.set_xticks(range(2 * len(WITH_FACTORS)), [name for loss in WITH_FACTORS for name in ("without", loss)])
    order.set(title="Rank correlation of score and IoU, every seed")
    for panel in (thresholds, order):
        panel.grid(alpha=0.3)
    _save(path)


def finished_rows(runs_of: dict[str, list[dict]]) -> list[str]:
    """The losses of which every data set has a training."""
    return [row for row in ROWS if all(any(run["loss"] == row for run in runs) for runs in runs_of.values())]


def plot_summary(path: Path, runs_of: dict[str, list[dict]]) -> None:
    """AP of every loss, by data: mean, 95 % interval, every seed; a band is the interval of focal loss."""
    rows = finished_rows(runs_of)
    _, panels = plt.subplots(1, len(runs_of), figsize=(5.5 * len(runs_of), 3.4), layout="constrained", squeeze=False)
    for panel, (title, runs) in zip(panels[0], runs_of.items(), strict=True):
        for i, row in enumerate(rows):
            values = [run["ap"] for run in runs if run["loss"] == row]
            mean, half = interval(values)
            panel.errorbar(mean, -i, xerr=half, capsize=4, marker="o", ms=6, color=STYLE_OF[row]["color"])
            panel.plot(values, [-i + 0.25] * len(values), "|", color=STYLE_OF[row]["color"])
            if row == "focal" and not math.isnan(half):
                panel.axvspan(mean - half, mean + half, color="0.5", alpha=0.15, lw=0)
        panel.set_yticks([-i for i in range(len(rows))], rows)
        panel.set(title=title, xlabel="AP")
        panel.grid(axis="x", alpha=0.3)
    _save(path)


def plot_imbalance(path: Path, runs: list[dict], rows: Callable[[list[dict], str], list[dict]]) -> None:
    """AP against the imbalance of classes, and against the share of positives; `rows` are the runs of a row."""
    _, (classes, positives) = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    tops = {top_k: f"top {top_k} anchors" for top_k in TOP_KS} | {9: "classes 1:1"}
    shares = {
        setting: statistics.mean(run["positive_share"] for run in runs if run["model"] == setting)
        for _, setting in sorted(tops.items())
        if any(run["model"] == setting for run in runs)
    }
    ratios = {f"classes {ratio:g}:1": ratio for ratio in IMBALANCES}
    for i, loss in enumerate(("focal", "focal tuned", *WITHOUT_KNOBS)):
        own = rows(runs, loss)
        aside = (i - 2.5) / 100
        for panel, settings, width in ((classes, ratios, 7), (positives, shares, 3)):  # so that intervals are apart
            at = {setting: x * math.exp(aside * width) for setting, x in settings.items()}
            _line(panel, loss, [(x, [r for r in own if r["model"] == setting]) for setting, x in at.items()])
    classes.set(xscale="log", xlabel="most frequent class : rarest, in training", ylabel="AP", title="Rare classes")
    classes.set_xticks(IMBALANCES, [f"{ratio:g}:1" for ratio in IMBALANCES])
    positives.set(xscale="log", xlabel="share of positive anchors in training", title="Few and many positives")
    positives.set_xticks(list(shares.values()), [f"{100 * value:.1f} %" for value in shares.values()])
    positives.minorticks_off()
    classes.minorticks_off()
    classes.legend(fontsize=9)
    _save(path)


def plot_tuning(path: Path, runs: list[dict]) -> None:
    """AP over learning rates and weights of the boxes, and of focal loss over alpha and gamma."""
    _, (rates, weights, grid) = plt.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
    panels = ((rates, "learning rate", LOSSES, LEARNING_RATES), (weights, "box weight", WITH_BOX_WEIGHT, BOX_WEIGHTS))
    for panel, name, losses, factors in panels:
        factors = sorted({1.0, *factors})
        for loss in losses:
            own = [run for run in runs if run["loss"] == loss]
            at = {x: (f"{name} x {x:g}" if x != 1 else "learning rate x 1") for x in factors}
            _line(panel, loss, [(x, [run for run in own if run["model"] == at[x]]) for x in factors])
        panel.set(xscale="log", xlabel=f"{name}, times that of the recipe", ylabel="AP", title=name.capitalize())
        panel.set_xticks(factors, [f"{factor:g}" for factor in factors])
        panel.minorticks_off()
    rates.legend(fontsize=9, ncols=2)
    found: dict[tuple[float, float], list[float]] = {}
    for run in runs:
        if run["model"].startswith("alpha"):
            _, alpha, _, gamma = run["model"].split()
            found.setdefault((float(alpha), float(gamma)), []).append(run["ap"])
    alphas, gammas = (sorted({key[axis] for key in found}) for axis in (0, 1))
    means = [[statistics.mean(found.get((alpha, gamma), [math.nan])) for gamma in gammas] for alpha in alphas]
    if found:
        grid.imshow(means, origin="lower", cmap="viridis", aspect="auto")
        lowest, highest = min(map(min, means)), max(map(max, means))
        for y, row in enumerate(means):
            for x, value in enumerate(row):
                dark = value < (lowest + highest) / 2
                grid.text(x, y, f"{value:.3f}", ha="center", va="center", color="white" if dark else "black")
    grid.set_xticks(range(len(gammas)), [f"{gamma:g}" for gamma in gammas])
    grid.set_yticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    grid.set(xlabel="gamma", ylabel="alpha", title="Focal loss: AP over alpha and gamma")
    _save(path)


def _line(panel: Axes, loss: str, points: list[tuple[float, list[dict]]]) -> None:
    there = [(x, *interval([run["ap"] for run in runs])) for x, runs in points if runs]
    if there:
        x, means, halves = zip(*there, strict=True)
        panel.errorbar(x, means, yerr=halves, capsize=3, **STYLE_OF[loss])
        panel.grid(alpha=0.3)


def _save(path: Path) -> None:
    plt.gcf().savefig(path, dpi=110)
    plt.close()

"""Tables and plots of what compare.py found, as one page: FOLDER/README.md.

    python examples/compare_page.py examples/results/compare

Intervals are 95 %, by Student's t over three seeds or more; fewer get none. A seed gives every loss the same data,
initial weights and batches: losses are compared by the differences within a seed, whose interval is narrower than those
of two means.
"""

import argparse
import json
import math
from pathlib import Path

from compare_plots import (
    finished_rows,
    has_factors,
    interval,
    plot_imbalance,
    plot_localization,
    plot_recipes,
    plot_summary,
    plot_tuning,
)
from experiments import (
    BEFORE,
    BOX_WEIGHTS,
    IMBALANCES,
    LEARNING_RATES,
    LOSSES,
    PUBLISHED,
    ROWS,
    TOP_KS,
    WITH_BOX_WEIGHT,
    WITH_FACTORS,
    WITHOUT_KNOBS,
    name_of,
    tuned,
)

TITLES = {
    "digits": "Scenes of handwritten digits",
    "folder": "Photographs: {data}",
    "imbalance": "Rare classes, few and many positives",
    "tuning": "Tuning",
}


def measured(values: list[float]) -> str:
    """Mean and interval."""
    mean, half = interval(values)
    return f"{mean:.3f}" if math.isnan(half) else f"{mean:.3f} ± {half:.3f}"


def difference(own: list[dict], others: list[dict], key: str = "ap") -> str:
    """Within each seed, these runs less the others."""
    by_seed = {run["seed"]: run[key] for run in others}
    mean, half = interval([run[key] - by_seed[run["seed"]] for run in own if run["seed"] in by_seed])
    return f"{mean:+.3f}" if math.isnan(half) else f"{mean:+.3f} ± {half:.3f}"


def of_row(runs: list[dict], loss: str) -> list[dict]:
    """Runs of a loss, or in each setting of the tuned variant of focal loss."""
    if loss != "focal tuned":
        return [run for run in runs if run["loss"] == loss]
    best = {setting: tuned(setting, runs) for setting in {run["model"] for run in runs}}
    names = {s: "focal" if v == PUBLISHED else name_of(v) for s, v in best.items() if v is not None}
    return [run for run in runs if names.get(run["model"]) == run["loss"]]


def overview(runs_of: dict[str, list[dict]]) -> list[str]:
    """AP of every loss by its recipe, and within each seed its difference from focal loss, by data."""
    lines = ["| loss | " + " | ".join(f"{data}, AP | less focal" for data in runs_of) + " |"]
    lines.append("|---" * (1 + 2 * len(runs_of)) + "|")
    for loss in finished_rows(runs_of):
        cells = []
        for runs in runs_of.values():
            own = of_row(runs, loss)
            cells.append(measured([run["ap"] for run in own]))
            cells.append("" if loss == "focal" else difference(own, of_row(runs, "focal")))
        lines.append(f"| {loss} | {' | '.join(cells)} |")
    return lines


def recipes(runs: list[dict]) -> list[str]:
    """Every loss by its recipe."""
    lines = ["| loss | seeds | AP | less focal | AP50 | AP75 | AP90 | correlation of score and IoU |", "|---" * 8 + "|"]
    for loss in ROWS:
        own = of_row(runs, loss)
        if own:
            cells = [measured([run[key] for run in own]) for key in ("ap50", "ap75")]
            cells += [measured([run["by_iou"][8] for run in own]), measured([run["correlation"] for run in own])]
            less = "" if loss == "focal" else difference(own, of_row(runs, "focal"))
            lines.append(f"| {loss} | {len(own)} | {measured([r['ap'] for r in own])} | {less} | {' | '.join(cells)} |")
    names = list(runs[0]["by_class"])
    lines += ["", "AP by class:", "", f"| loss | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for loss in ROWS:
        own = of_row(runs, loss)
        if own:
            cells = [f"{interval([run['by_class'][name] for run in own])[0]:.3f}" for name in names]
            lines.append(f"| {loss} | {' | '.join(cells)} |")
    return lines


def localization(runs: list[dict]) -> list[str]:
    """What the losses that promise better boxes reach beside the same loss without their factors."""
    columns = {f"AP{50 + 5 * k}": k for k in (0, 5, 6, 7, 8)}
    names = [*columns, "correlation"]
    flat = [run | {name: run["by_iou"][k] for name, k in columns.items()} for run in runs]
    lines = [
        f"Better boxes? What these losses change within a seed, beside focal loss and smooth L1 (`{BEFORE}`), which is "
        "what they are without their factors:",
        "",
        f"| loss | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for loss in WITH_FACTORS:
        cells = [difference(of_row(flat, loss), of_row(flat, BEFORE), name) for name in names]
        lines.append(f"| {loss} | {' | '.join(cells)} |")
    return lines


def imbalance(runs: list[dict]) -> list[str]:
    """Two tables, settings by losses: AP, and the differences from focal loss."""
    settings = [f"classes {ratio:g}:1" for ratio in IMBALANCES] + [f"top {top_k} anchors" for top_k in TOP_KS]
    rows = ("focal", "focal tuned", *WITHOUT_KNOBS)
    means = [f"| AP | {' | '.join(rows)} | tuned to |", "|---" * (len(rows) + 2) + "|"]
    differences = [f"| less focal | {' | '.join(rows[1:])} |", "|---" * len(rows) + "|"]
    for setting in settings:
        here = [run for run in runs if run["model"] == setting]
        found = [of_row(here, loss) for loss in rows]
        if found[0]:
            best = tuned(setting, here)
            cells = [measured([run["ap"] for run in own]) if own else "" for own in found]
            means.append(f"| {setting} | {' | '.join(cells)} | {name_of(best) if best else ''} |")
            cells = [difference(own, found[0]) if own else "" for own in found[1:]]
            differences.append(f"| {setting} | {' | '.join(cells)} |")
    return [*means, "", *differences]


def tuning(runs: list[dict]) -> list[str]:
    """AP by learning rate and by weight of the boxes, and how many of them keep 95 % of the best."""
    by_rate = grid(runs, LOSSES, {f"x {rate:g}": f"learning rate x {rate:g}" for rate in LEARNING_RATES})
    weights = {weight: f"box weight x {weight:g}" for weight in BOX_WEIGHTS} | {1.0: "learning rate x 1"}
    by_weight = grid(runs, WITH_BOX_WEIGHT, {f"x {weight:g}": weights[weight] for weight in sorted(weights)})
    return ["By learning rate, times that of the recipe:", "", *by_rate, "", "By weight of the boxes:", "", *by_weight]


def grid(runs: list[dict], losses: tuple[str, ...], settings: dict[str, str]) -> list[str]:
    """A table: losses by settings, which are given with their headings."""
    lines = [f"| loss | {' | '.join(settings)} | within 5 % of the best |", "|---" * (len(settings) + 2) + "|"]
    for loss in losses:
        means = []
        for setting in settings.values():
            found = [run["ap"] for run in runs if run["loss"] == loss and run["model"] == setting]
            means.append(interval(found)[0] if found else math.nan)
        best = max((mean for mean in means if not math.isnan(mean)), default=0)
        near = sum(mean >= 0.95 * best for mean in means)
        lines.append(f"| {loss} | {' | '.join(f'{mean:.3f}' for mean in means)} | {near} of {len(settings)} |")
    return lines


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    lines = [
        "# The losses compared",
        "",
        "Written by `examples/compare_page.py`. " + " ".join(__doc__.split("\n\n")[2].split()),
    ]
    found = {name: json.loads(path.read_text()) for name in TITLES if (path := folder / name / "results.json").exists()}
    if found.keys() >= {"digits", "folder"}:
        runs_of = {found[name]["settings"]["data"]: found[name]["runs"] for name in ("digits", "folder")}
        plot_summary(folder / "summary.png", runs_of)
        lines += ["", *overview(runs_of), "", "![AP of every loss](summary.png)"]
    for name, content in found.items():
        runs, settings = content["runs"], content["settings"]
        title = TITLES[name].format(**settings)
        of_runs = {"imbalance": imbalance, "tuning": tuning}.get(name, recipes)(runs)
        picture = f"{name}.png"
        if name == "imbalance":
            plot_imbalance(folder / picture, runs, of_row)
        elif name == "tuning":
            plot_tuning(folder / picture, runs)
        else:
            plot_recipes(folder / picture, runs)
        lines += ["", f"## {title}", "", f"{settings['epochs']} epochs, {len(runs)} trainings.", ""]
        lines += [*of_runs, "", f"![{title}]({picture})"]
        if name in ("digits", "folder") and has_factors(runs):
            plot_localization(folder / f"{name}-boxes.png", runs)
            lines += ["", *localization(runs), "", f"![{title}: boxes]({name}-boxes.png)"]
        diverged = [f"{run['loss']} at {run['model']}, seed {run['seed']}" for run in runs if "diverged" in run]
        if diverged:
            lines += ["", f"Not finite, counted as 0: {'; '.join(diverged)}."]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

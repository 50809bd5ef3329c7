"""Plots of result files, on white, so that they read on a light and a dark page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .peers import OURS
from .report import AXES, NAMES, POINTWISE, RANKING
from .results_file import Results, Row, cases

# Marker, colour and line of every implementation: told apart without colour too.
STYLES = {
    OURS: ("o", "black", "-"),
    "loop": ("s", "#d55e00", "--"),
    "bucketed": ("^", "#0072b2", ":"),
    "bucketed-search": ("v", "#56b4e9", ":"),
    "vectorized": ("D", "#009e73", "-."),
    "vectorized-compiled": ("P", "#cc79a7", "-."),
    "formula": ("s", "#d55e00", "--"),
    "formula-compiled": ("P", "#cc79a7", "-."),
    "torchvision-focal": ("x", "0.5", ":"),
    "memory floor": ("|", "black", ":"),
}
SECONDS = "seconds, forward + backward"


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Write all plots that the results allow into `folder`; file names by section."""
    plain, scaling = results.along(), results.along(*AXES)
    drawn = {
        "ranking": (times, [row for row in plain if row.key[0] in RANKING]),
        "pointwise": (times, [row for row in plain if row.key[0] in POINTWISE]),
        "scaling": (along_axes, scaling),
    }
    return {name: save(fill(rows), folder / f"{name}.png") for name, (fill, rows) in drawn.items() if cases(rows)}


def panels(number: int, width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    plot = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return plot, plot.subplots(1, number, sharey=True, squeeze=False)[0]


def save(plot: Any, file: Path) -> str:
    """With one entry per implementation below."""
    handles = {}
    for axes in plot.axes:
        axes.grid(which="major", color="0.92")
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    plot.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    plot.savefig(file, dpi=110)
    return file.name


def times(rows: list[Row]) -> Any:
    """Every case a line, every implementation a mark at its time."""
    found = cases(rows)
    plot, (axes,) = panels(1, 9, 1.6 + 0.34 * len(found))
    for y, of_case in enumerate(found.values()):
        seconds = [row.median for row in of_case.values()]
        axes.plot([min(seconds), max(seconds)], [y, y], color="0.85", zorder=1)
        mark(axes, "memory floor", [of_case[OURS].info["floor"]], [y])
        for peer, row in of_case.items():
            mark(axes, peer, [row.median], [y])
    axes.set(xscale="log", xlabel=SECONDS, ylim=(len(found) - 0.5, -0.5))
    axes.set_yticks(range(len(found)), [f"{NAMES[loss]}: {workload}" for loss, workload in found])
    return plot


def along_axes(rows: list[Row]) -> Any:
    names = [axis for axis in AXES if any(row.info["axis"] == axis for row in rows)]
    plot, all_axes = panels(len(names), 1 + 3 * len(names), 3.9)
    for axes, name in zip(all_axes, names, strict=True):
        along = [row for row in rows if row.info["axis"] == name]
        for peer in dict.fromkeys(row.key[2] for row in along):
            found = [row for row in along if row.key[2] == peer]
            mark(axes, peer, [row.info["at"] for row in found], [row.median for row in found], connect=True)
        ours = [row for row in along if row.key[2] == OURS]
        mark(axes, "memory floor", [row.info["at"] for row in ours], [row.info["floor"] for row in ours], connect=True)
        logits, positives = (f"{ours[-1].info[number]:,} {number}" for number in ("logits", "positives"))
        held = {"positives": f"{logits}, mixed", "relevant": logits}.get(name, positives)
        axes.set(xscale="log", yscale="log", xlabel=f"{name} ({held})")
    all_axes[0].set_ylabel(SECONDS)
    return plot


def mark(axes: Any, peer: str, xs: Sequence[float], ys: Sequence[float], connect: bool = False) -> None:
    marker, color, line = STYLES[peer]
    style = {"linestyle": line if connect else "none", "markerfacecolor": color if peer == OURS else "none"}
    axes.plot(xs, ys, marker=marker, color=color, markeredgewidth=1.4, linewidth=1.2, label=peer, zorder=3, **style)

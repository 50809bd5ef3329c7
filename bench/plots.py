"""Plots of result files: readable in grey, logarithmic axes with units."""

from pathlib import Path

from .peers.peer import OURS
from .report import AXES, NAMES, RANKING, value
from .results_file import Results, Row

# Cases whose errors differ; of a GPU's set those that are called alike.
ACCURACY = ("million-init", "fewer-hard", "fewer-init-bf16", "retinanet-init", "retinanet-hard", "retinanet-init-bf16")
# Marker, grey and line of every implementation: told apart without colour.
STYLES = {
    OURS: ("o", "0.0", "-"),
    "loop": ("s", "0.45", "--"),
    "bucketed": ("^", "0.3", ":"),
    "bucketed-search": ("v", "0.6", ":"),
    "vectorized": ("D", "0.45", "-."),
    "vectorized-compiled": ("P", "0.2", "-."),
    "formula": ("s", "0.45", "--"),
    "formula-compiled": ("P", "0.2", "-."),
    "torchvision-focal": ("x", "0.5", ":"),
}


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Write all plots that the results allow into `folder`; file names by section."""
    import matplotlib

    matplotlib.use("Agg")
    plain = [row for row in results.of() if "axis" not in row.info]
    drawn = {
        "ranking": _times([row for row in plain if row.loss in RANKING], results),
        "pointwise": _times([row for row in plain if row.loss not in RANKING], results),
        "accuracy": _accuracy([row for row in plain if row.loss == "ap"], results),
        "scaling": _scaling(results, "time"),
        "scaling-memory": _scaling(results, "memory"),
    }
    names = {}
    for name, plot in drawn.items():
        if plot is not None:
            plot.savefig(folder / f"{name}.png", dpi=110)
            names[name] = f"{name}.png"
    return names


def _times(rows: list[Row], results: Results):
    """Every case a line, every implementation a mark at its time."""
    from matplotlib.figure import Figure

    cases = results.cases(rows)
    if not cases:
        return None
    plot = Figure(figsize=(9, 1.6 + 0.34 * len(cases)), layout="constrained")
    axes = plot.subplots()
    labels = [f"{NAMES[loss]}: {workload}" for loss, workload in cases]
    for y, by_peer in enumerate(cases.values()):
        times = [row.median for row in by_peer.values()]
        axes.plot([min(times), max(times)], [y, y], color="0.85", zorder=1)
        axes.plot(by_peer[OURS].info["floor"], y, marker="|", color="0.0", markersize=11, linestyle="none", zorder=2)
        for peer, row in by_peer.items():
            _mark(axes, peer, [row.median], [y])
    axes.plot([], [], marker="|", color="0.0", markersize=11, linestyle="none", label="memory floor")
    axes.set(xscale="log", xlabel=f"forward + backward, seconds ({_clock(results)})")
    axes.set_yticks(range(len(cases)), labels)
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.grid(axis="x", which="both", color="0.92")
    _legend(plot, axes)
    return plot


def _accuracy(rows: list[Row], results: Results):
    """Error of the gradient over time, a panel for every case that shows something of its own."""
    from matplotlib.figure import Figure

    wanted = [name for name in ACCURACY if any(row.workload == name for row in rows)]
    if not wanted:
        return None
    plot = Figure(figsize=(3.1 * len(wanted), 3.6), layout="constrained")
    panels = plot.subplots(1, len(wanted), sharex=True, sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, wanted, strict=True):
        found = [row for row in rows if row.workload == name]
        for row in found:
            _mark(axes, row.peer, [row.median], [max(row.info["error_gradient"], 1e-10)])
        axes.set(xscale="log", yscale="log", xlabel="forward + backward, seconds", title=name)
        axes.grid(which="major", color="0.92")
    panels[0].set_ylabel("relative error of the gradient")
    _legend(plot, panels[0])
    return plot


def _scaling(results: Results, kind: str):
    """A panel for every axis."""
    from matplotlib.figure import Figure

    rows = [row for row in results.of() if "axis" in row.info]
    names = [name for name in AXES if any(row.info["axis"] == name for row in rows)]
    if not names:
        return None
    plot = Figure(figsize=(3.1 * len(names), 3.9), layout="constrained")
    panels = plot.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        along = [row for row in rows if row.info["axis"] == name]
        for peer in dict.fromkeys(row.peer for row in along):
            points = sorted((row.info["at"], value(row, kind)) for row in along if row.peer == peer)
            _mark(axes, peer, *zip(*points, strict=True), connect=True)
        if kind == "time":
            floor = sorted({(row.info["at"], row.info["floor"]) for row in along})
            axes.plot(
                *zip(*floor, strict=True), color="0.0", linewidth=0.8, linestyle=(0, (1, 3)), label="memory floor"
            )
        axes.set(xscale="log", yscale="log", xlabel=_axis_label(along, name))
        axes.grid(which="major", color="0.92")
    unit = "seconds, forward + backward" if kind == "time" else "peak extra memory, bytes"
    panels[0].set_ylabel(unit)
    _legend(plot, panels[0])
    return plot


def _axis_label(rows: list[Row], name: str) -> str:
    """The axis, and what is held constant along it."""
    info = rows[-1].info
    if name == "negatives":
        return f"logits ({info['positives']:,} positives)"
    if name == "classes":
        return f"classes ({info['logits'] // info['classes']:,} anchors)"
    if name == "positives":
        return f"positives ({info['logits']:,} logits)"
    return f"share of negatives that matter\n({info['logits']:,} logits, {info['positives']:,} positives)"


def _mark(axes, peer: str, xs, ys, connect: bool = False) -> None:
    marker, grey, line = STYLES[peer]
    axes.plot(
        xs, ys, marker=marker, color=grey, markersize=6, linestyle=line if connect else "none",
        markerfacecolor=grey if peer == OURS else "white", markeredgecolor=grey, linewidth=1.2, label=peer, zorder=3,
    )  # fmt: skip


def _legend(plot, axes) -> None:
    """One entry per implementation, below."""
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    plot.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)


def _clock(results: Results) -> str:
    machine = results.machine
    what = {"cpu": "processor time", "wall": "wall clock"}.get(machine["clock"], "device time")
    return f"{what}, threads: {machine['torch_threads']}" if machine["clock"] != "device" else what

"""Pictures of how hard a loss pushes each logit of the scene."""

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from tools.themes import Theme

from .scene import DRAWN, IOU, LOGITS, POSITIVES, push, shares

P = len(POSITIVES)
# What neighbours in the overview are to be compared with.
OVERVIEW = ("cross_entropy", "focal", "iou_balanced", "harmonic", "ap", "alrp", "rank_sort", "dr")


def colours(theme: Theme) -> LinearSegmentedColormap:
    """Of positives, from a low IoU to a high one."""
    return LinearSegmentedColormap.from_list("iou", [theme.series[1], theme.series[0]])


def draw_push(axes: Axes, name: str, theme: Theme, size: float) -> None:
    """A stem for each logit, as long as its push: up for what is to rise."""
    drawn = DRAWN[name]
    found = push(drawn.loss)
    found = found / found.abs().max()
    of_iou = (IOU - IOU.min()) / (IOU.max() - IOU.min())
    fill = [colours(theme)(float(u)) for u in of_iou] if drawn.uses_iou else theme.series[0]
    axes.axhline(0, color=theme.faint, linewidth=0.8)
    # One line of all stems, cut by NaN, and one of all crosses: a small file.
    stems = torch.stack([torch.zeros_like(found), found, torch.full_like(found, torch.nan)], -1)[P:].flatten()
    axes.plot(LOGITS[P:].repeat_interleave(3), stems, color=theme.series[2], linewidth=0.35 * size**0.5)
    axes.plot(LOGITS[P:], found[P:], "x", markersize=size**0.5, color=theme.series[2], markeredgewidth=0.9)
    axes.vlines(LOGITS[:P], 0, found[:P], color=fill, linewidth=0.4 * size**0.5)
    axes.scatter(LOGITS[:P], found[:P], 1.6 * size, color=fill, zorder=3)
    parts = ", ".join(f"{kind} {round(100 * share)} %" for kind, share in shares(found).items())
    axes.text(0.99, 0.01, parts, color=theme.series[2], ha="right", va="bottom", transform=axes.transAxes)
    axes.set_title(drawn.title)
    axes.set_ylim(-1.35, 1.1)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def draw_one(name: str, theme: Theme) -> Figure:
    """For the page of a loss."""
    figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
    draw_push(axes, name, theme, 22)
    axes.set_xlabel("logit")
    axes.text(0.01, 0.97, "pushed up", color=theme.series[0], va="top", transform=axes.transAxes)
    axes.text(0.01, 0.01, "pushed down", color=theme.series[2], va="bottom", transform=axes.transAxes)
    if DRAWN[name].uses_iou:
        axes.text(0.01, 0.87, "IoU low", color=theme.series[1], va="top", transform=axes.transAxes)
        axes.text(0.155, 0.87, "to high", color=theme.series[0], va="top", transform=axes.transAxes)
    return figure


def draw_all(theme: Theme) -> Figure:
    """All side by side."""
    figure, panels = plt.subplots(2, 4, figsize=(9.6, 4.6), layout="constrained", sharex=True)
    for axes, name in zip(panels.flat, OVERVIEW, strict=True):
        draw_push(axes, name, theme, 10)
        axes.texts[0].set_fontsize(8)
    for axes in panels[1]:
        axes.set_xlabel("logit")
    return figure

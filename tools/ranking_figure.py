"""The figure of docs/architecture.md: count, error and transport of AP Loss on three positives and nine negatives.

python -m tools.ranking_figure
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from reference import ap, dense
from tools.themes import FOLDER, THEMES, Theme, style

DELTA = 1.0
POSITIVES = torch.tensor([-0.7, 0.6, 2.1], dtype=torch.float64)
NEGATIVES = torch.tensor([-2.9, -2.3, -1.5, -1.1, -0.4, 0.0, 0.3, 1.0, 1.7], dtype=torch.float64)
SHOWN = 1  # the positive whose count is drawn
SCORES = torch.linspace(-3.2, 3.4, 661, dtype=torch.float64)


def draw_count(axes: Axes, theme: Theme) -> None:
    """H(n - p_i) of every positive; for one of them, what each negative adds."""
    for i, p in enumerate(POSITIVES):
        shown = i == SHOWN
        curve = dense.step(SCORES - p, DELTA)
        axes.plot(SCORES, curve, color=theme.series[i], linewidth=2 if shown else 1.2, alpha=1 if shown else 0.55)
        axes.plot(p, 0.5, "o", color=theme.series[i], markersize=6)
    steps = dense.step(NEGATIVES - POSITIVES[SHOWN], DELTA)
    axes.vlines(NEGATIVES, 0, steps, color=theme.series[SHOWN], linewidth=2.5)
    above = dense.count(NEGATIVES, POSITIVES, DELTA)[SHOWN]
    axes.text(-3.1, 1.22, f"$b_2$ = sum of the bars = {above:.2f}", color=theme.series[SHOWN])
    axes.set_title("1  count    $b_i = \\sum_j H(n_j - p_i)$", color=theme.ink)
    axes.set_ylim(-0.16, 1.4)
    axes.set_yticks([0, 0.5, 1])
    draw_negatives(axes, theme)


def draw_error(axes: Axes, theme: Theme) -> None:
    """Of each positive its rank among positives, the negatives above it, and the error that follows."""
    among = ap.rank_among_positives(POSITIVES, DELTA, dense)
    above = dense.count(NEGATIVES, POSITIVES, DELTA)
    error = ap.ap_error(POSITIVES, above, DELTA, True, dense)[0]
    for i, color in enumerate(theme.series):
        axes.barh(i, among[i], 0.5, color=color)
        axes.barh(i, above[i], 0.5, left=among[i], facecolor="none", edgecolor=theme.negative, hatch="////")
        axes.text(0.1, i + 0.32, f"$p_{i + 1}$: $a$ = {among[i]:.2f}, $b$ = {above[i]:.2f}", color=color)
        axes.text(float(among[i] + above[i]) + 0.15, i, f"error {error[i]:.2f}", color=theme.ink, va="center")
    axes.set_title("2  error    $1 - q_i$,  $q_i$: running maximum of $a / (a + b)$", color=theme.ink)
    axes.set_xlim(0, 10.8)
    axes.set_ylim(-0.4, 2.75)
    axes.set_yticks([])
    axes.set_xlabel("rank: positives (filled), negatives (hatched)", color=theme.faint)


def draw_transport(axes: Axes, theme: Theme) -> None:
    """The update of a negative as a function of its score, its kinks, and the negatives on it."""
    weights = (
        ap.ap_error(POSITIVES, dense.count(NEGATIVES, POSITIVES, DELTA), DELTA, True, dense)[1] / POSITIVES.numel()
    )

    def carried(scores: Tensor) -> Tensor:
        return dense.transport(scores, POSITIVES, weights, DELTA)

    axes.plot(SCORES, carried(SCORES), color=theme.ink, linewidth=2)
    for i, p in enumerate(POSITIVES):
        kinks = torch.stack([p - DELTA, p + DELTA])
        axes.plot(kinks, carried(kinks), "s", color=theme.series[i], markersize=6)
    axes.vlines(NEGATIVES, 0, carried(NEGATIVES), color=theme.negative, linewidth=2.5)
    axes.set_title("3  transport    $g_j = \\sum_i w_i H(n_j - p_i)$", color=theme.ink)
    top = float(carried(SCORES).max())
    axes.text(-3.1, 1.16 * top, "squares: kinks $p_i \\pm \\delta$", color=theme.faint)
    axes.set_ylim(-0.11 * top, 1.33 * top)
    axes.set_yticks([])
    draw_negatives(axes, theme)


def draw_negatives(axes: Axes, theme: Theme) -> None:
    """The negatives, below an axis of scores."""
    bottom = axes.get_ylim()[0]
    axes.plot(NEGATIVES, np.full(len(NEGATIVES), 0.5 * bottom), "x", color=theme.negative, markersize=5)
    axes.set_xlim(float(SCORES[0]), float(SCORES[-1]))
    axes.set_xlabel("score; crosses: negatives $n_j$", color=theme.faint)


def draw(theme: Theme, path: Path) -> None:
    """The three panels, on a transparent ground."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.3), layout="constrained")
    for axes, panel in zip(panels, (draw_count, draw_error, draw_transport), strict=True):
        panel(axes, theme)
        style(axes, theme)
    figure.savefig(path, dpi=150, transparent=True)
    plt.close(figure)


if __name__ == "__main__":
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11})
    for name, theme in THEMES.items():
        draw(theme, FOLDER / f"ranking-{name}.png")

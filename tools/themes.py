"""Colours of the figures, for pages that are light and pages that are dark."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).parents[1] / "docs" / "images"


class Theme(NamedTuple):
    """Three colours of series are enough, and told apart without colour by where they are used."""

    ink: str
    faint: str
    negative: str
    series: tuple[str, str, str]


THEMES = {
    "light": Theme("#1f2328", "#8c959f", "#57606a", ("#0a7d55", "#0969da", "#9a5b00")),
    "dark": Theme("#e6edf3", "#7d8590", "#afb8c1", ("#4cc38a", "#6cb6ff", "#e0a13c")),
}


def style(axes: Axes, theme: Theme) -> None:
    """Two thin axes, no frame."""
    axes.tick_params(colors=theme.faint)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.faint)
    axes.xaxis.label.set_color(theme.faint)
    axes.yaxis.label.set_color(theme.faint)
    axes.title.set_color(theme.ink)


def save(draw: Callable[[Theme], Figure], name: str, folder: Path = FOLDER) -> None:
    """NAME-light.svg and NAME-dark.svg, on a transparent ground, the same bytes from the same figure."""
    plt.rcParams.update({"font.size": 11, "axes.titlesize": 12, "svg.hashsalt": name, "legend.frameon": False})
    for theme_name, theme in THEMES.items():
        with plt.rc_context({"text.color": theme.ink}):
            figure = draw(theme)
            for axes in figure.axes:
                style(axes, theme)
            figure.savefig(folder / f"{name}-{theme_name}.svg", transparent=True, metadata={"Date": None})
            plt.close(figure)

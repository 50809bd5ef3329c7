"""Draws all of them into docs/images.

python -m tools.pictures
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

import triton_rankloss as rankloss
from tools import themes

from . import gradients, options

PICTURES: dict[str, Callable[[themes.Theme], Figure]] = {
    "gradients": gradients.draw_all,
    **{
        f"gradient-{name}": partial(gradients.draw_one, name)
        for name in ("ap", "alrp", "rank_sort", "dr", "iou_balanced", "harmonic")
    },
    "delta": options.draw_delta,
    "interpolation": options.draw_interpolation,
    "eta": options.draw_eta,
    "harmonic-factor": options.draw_harmonic,
    "boxes": options.draw_boxes,
    "balance-alrp": partial(options.draw_balance, criterion=rankloss.ALRPLoss),
    "balance-rank_sort": partial(options.draw_balance, criterion=rankloss.RankSortLoss),
}


def main(folder: Path = themes.FOLDER) -> None:
    """Each in light and in dark."""
    for name, draw in PICTURES.items():
        themes.save(draw, name, folder)


if __name__ == "__main__":
    main()

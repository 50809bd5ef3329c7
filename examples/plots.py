"""Pictures: training curves, and test images with true and predicted boxes."""

from pathlib import Path

import matplotlib
import torch
from data import Dataset
from detector import Detections

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

# Told apart by line style and marker as well as by colour, for readers in grey.
STYLES = [("-", "o"), ("--", "s"), ("-.", "^"), (":", "D"), ("-", "v"), ("--", "x"), ("-.", "P")]
COLUMNS = 4


def plot_curves(path: Path, results: list[dict]) -> None:
    """Each loss's parts by epoch (their scales differ: a panel each), and AP and AP50 of all losses."""
    rows = -(-len(results) // COLUMNS)
    figure = plt.figure(figsize=(12, 2.3 * rows + 4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.3 * rows, 4))
    panels = top.subplots(rows, min(COLUMNS, len(results)), squeeze=False).flatten()
    for panel, result in zip(panels, results, strict=False):
        epochs = [point["epoch"] for point in result["curve"]]
        for part, (line, _) in zip(result["curve"][0]["parts"], STYLES, strict=False):
            panel.plot(epochs, [point["parts"][part] for point in result["curve"]], line, label=part)
        panel.set_title(f"{result['loss']}: training loss", fontsize=10)
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=8, frameon=False)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in panels[len(results) :]:
        panel.set_axis_off()
    for axes, key, title in zip(bottom.subplots(1, 2, sharey=True), ("ap", "ap50"), ("AP", "AP50"), strict=True):
        for i, result in enumerate(results):
            line, marker = STYLES[i % len(STYLES)]
            epochs, values = zip(*((point["epoch"], point[key]) for point in result["curve"]), strict=True)
            every = max(1, len(epochs) // 8)
            axes.plot(epochs, values, line, marker=marker, markevery=(i % every, every), ms=5, label=result["loss"])
        axes.set(title=f"{title}, validation split", xlabel="epoch", ylim=(0, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    axes.legend(fontsize=9, ncols=2, loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_examples(path: Path, dataset: Dataset, found: dict[str, list[Detections]]) -> None:
    """Test images with true boxes, solid and light, and detections, dashed and dark, with class and score.

    Eight images of one loss, or a row of four for each of several.
    """
    split = dataset.test
    height, width = split.images.shape[-2:]
    indices = range(min(2 * COLUMNS if len(found) == 1 else COLUMNS, len(split.images)))
    columns = min(COLUMNS, len(indices))
    rows = len(found) * -(-len(indices) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.6 * rows * height / width + 0.5), squeeze=False, layout="constrained"
    )
    for panel in grid.flat:
        panel.set_axis_off()
    panels = iter(grid.flat)
    titles = []
    for loss, detections in found.items():
        threshold = _threshold(dataset, detections)
        titles.append(f"{loss} (score >= {threshold:.2f})")
        for i, panel in zip(indices, panels, strict=False):
            panel.imshow(split.images[i].permute(1, 2, 0), extent=(0, width, height, 0))
            _draw_boxes(panel, dataset, i, detections[i], threshold)
            if len(found) > 1 and i == 0:
                panel.set_title(titles[-1], loc="left")
    heading = "" if len(found) > 1 else f"{titles[0]}, "
    figure.suptitle(f"{heading}{dataset.name}: true boxes solid yellow, detections dashed blue")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _threshold(dataset: Dataset, detections: list[Detections]) -> float:
    """Lets through as many detections of the whole split as it has true boxes.

    Ranking losses order the scores, but fix no scale.
    """
    scores = torch.cat([image.scores for image in detections]).sort(descending=True).values
    return scores[min(sum(map(len, dataset.test.boxes)), len(scores)) - 1].item()


def _draw_boxes(panel: Axes, dataset: Dataset, index: int, detections: Detections, threshold: float) -> None:
    for x1, y1, x2, y2 in dataset.test.boxes[index].tolist():
        panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="gold", lw=2.5))
    for box, score, label in zip(*detections, strict=True):
        if score >= threshold:
            x1, y1, x2, y2 = box.tolist()
            panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="navy", lw=1.3, ls="--"))
            text = f"{dataset.categories[int(label)]['name']} {score:.2f}"
            label_box = {"facecolor": "navy", "edgecolor": "none", "pad": 0.8}
            va = "bottom" if y1 > dataset.test.images.shape[-2] / 16 else "top"
            panel.text(x1, y1, text, va=va, fontsize=7, color="white", bbox=label_box, clip_on=True)

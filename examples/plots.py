"""Pictures: training curves, and test images with true and predicted boxes."""

from pathlib import Path

import matplotlib
import torch
from data import Dataset
from detector import Detections

matplotlib.use("agg")
import matplotlib.pyplot as plt
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


def plot_examples(path: Path, loss: str, dataset: Dataset, detections: list[Detections]) -> None:
    """Eight test images: true boxes solid and light, detections dashed and dark, with class and score.

    Ranking losses order the scores but fix no scale, so the threshold lets through as many detections of the whole
    split as it has true boxes.
    """
    split = dataset.test
    scores = torch.cat([image.scores for image in detections]).sort(descending=True).values
    threshold = scores[min(sum(map(len, split.boxes)), len(scores)) - 1].item()
    count = min(8, len(split.images))
    columns = min(4, count)
    rows = -(-count // columns)
    height, width = split.images.shape[-2:]
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 3.6 * rows * height / width + 0.5), squeeze=False, layout="constrained"
    )
    for panel in grid.flat:
        panel.set_axis_off()
    for i, panel in zip(range(count), grid.flat, strict=False):
        panel.imshow(split.images[i].permute(1, 2, 0), extent=(0, width, height, 0))
        for x1, y1, x2, y2 in split.boxes[i].tolist():
            panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="gold", lw=2.5))
        for box, score, label in zip(*detections[i], strict=True):
            if score >= threshold:
                x1, y1, x2, y2 = box.tolist()
                panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color="navy", lw=1.3, ls="--"))
                text = f"{dataset.categories[int(label)]['name']} {score:.2f}"
                label_box = {"facecolor": "navy", "edgecolor": "none", "pad": 0.8}
                va = "bottom" if y1 > height / 16 else "top"
                panel.text(x1, y1, text, va=va, fontsize=7, color="white", bbox=label_box, clip_on=True)
    figure.suptitle(
        f"{loss}, {dataset.name}: true boxes solid yellow, detections dashed blue (score >= {threshold:.2f})"
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)

"""The page that is made of result files: tables of ratios, errors, memory and shares."""

import math
from collections.abc import Callable

from .peers import OURS, YARDSTICK
from .results_file import Results, Row, cases

RANKING = {"ap": "AP Loss", "alrp": "aLRP Loss", "rank_sort": "Rank & Sort Loss"}
POINTWISE = {
    "iou_balanced_focal": "IoU-balanced focal",
    "iou_balanced_cross_entropy": "IoU-balanced cross-entropy",
    "dr": "DR Loss",
    "harmonic": "Harmonic (focal)",
    "giou": "GIoU",
}
NAMES = RANKING | POINTWISE
AXES = ("negatives", "positives", "relevant", "classes")
READING = """
Milliseconds are medians of pytest-benchmark, on a GPU of its own clock. A ratio is that implementation's time over
ours: median and, in brackets, quartiles of rounds in which all took turns on the same inputs; below 1 it is ahead.
`floor`: reading the logits twice and writing them once, at the copy bandwidth measured in the run, over ours."""
ACCURACY = """
sum |g - g*| / sum |g*| of the gradient, against float64 on the same (rounded) inputs, the worse of positives and
negatives taken by themselves; errors of the loss and the largest are in the result file. `bucketed` is approximate by
construction, and its AP form is not interpolated."""
TRAINING = """
Milliseconds of the loss, its forward and backward down to the logits, in those of a whole step of AdamW, with an L1
loss of the boxes, weights as they begin; `torchvision-focal` in place of the ranking loss is the yardstick."""
RANKS = """
AP Loss, forward and backward, over gloo processes of one thread, 16 images each. Milliseconds are processor time of
rank 0: there are more ranks than cores. Without a group every rank ranks its own images alone."""
HOST = """
The Python of AP Loss on the path of the kernels, forward and backward, without what Triton takes to launch."""
Cell = Callable[[Row], str]


def page(results: Results, plots: dict[str, str]) -> str:
    """Markdown; `plots` are file names by section."""
    plain, scaling, steps = results.along(), results.along(*AXES), results.along("training")
    ranking, pointwise = ([row for row in plain if row.key[0] in losses] for losses in (RANKING, POINTWISE))
    sections = (
        ("ranking", "Ranking losses, forward + backward", table(ranking, ratio, SIZES | RELEVANT | TIMES)),
        ("accuracy", "Accuracy against cost", table(ranking, error), ACCURACY),
        ("memory", "Peak extra memory, in gradients", table(ranking, memory), "The gradient itself is 1."),
        ("scaling", "Scaling of AP Loss, forward + backward", exponents(scaling)),
        ("pointwise", "Every logit or box once, forward + backward", table(pointwise, ratio, SIZES | TIMES)),
        ("training", "End to end", table(steps, share, SIZES), TRAINING),
        ("ranks", "Over many ranks", ranks(results.along("ranks")), RANKS),
        ("host", "Before all is launched", host(results.along("host")), HOST),
        ("ahead", "Where a peer is ahead", ahead([*plain, *scaling]) or "Nowhere."),
    )
    parts = [header(results)]
    for name, title, body, *explained in sections:
        figure = [f"![{name}]({plots[name]})"] if name in plots else []
        parts += [f"## {title}", *figure, *explained, body] if body else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def header(results: Results) -> str:
    machine, commit = results.machine, results.commit
    lines = [
        f"# Benchmarks: {machine['machine']}\n",
        f"{machine['device']}, threads: {machine['torch_threads']} of {machine['cores']} cores; torch "
        f"{machine['torch']}, triton {machine['triton']}, Python {machine['python']}; commit `{commit['id'][:12]}`"
        f"{', with changes' if commit.get('dirty') else ''}.",
        "**A quick run at tiny sizes: its numbers say nothing.**" if machine.get("quick") else "",
    ]
    return "\n".join(filter(None, [*lines, READING]))


def table(rows: list[Row], cell: Cell, columns: dict[str, Cell] | None = None) -> str:
    """Cases by peers; `columns` before them are made of our row, which has no cell then where it would be 1."""
    peers = [peer for peer in dict.fromkeys(row.key[2] for row in rows) if cell is not ratio or peer != OURS]
    columns = columns or {}
    lines = [["case", *columns, *peers]]
    for (loss, workload), found in cases(rows).items():
        cells = [cell(found[peer]) if peer in found else "" for peer in peers]
        lines.append([f"{NAMES[loss]}, {workload}", *(make(found[OURS]) for make in columns.values()), *cells])
    return markdown(lines)


def exponents(rows: list[Row]) -> str:
    lines = [["slope between the last two places", *AXES]]
    for peer in dict.fromkeys(row.key[2] for row in rows):
        along = [[row for row in rows if row.key[2] == peer and row.info["axis"] == axis] for axis in AXES]
        lines.append([peer, *(f"{exponent(*found[-2:]):.2f}" if len(found) > 1 else "" for found in along)])
    return markdown(lines)


def exponent(low: Row, high: Row) -> float:
    return math.log(high.median / low.median, high.info["at"] / low.info["at"])


def ranks(rows: list[Row]) -> str:
    lines = [["ranks", "positives of all", "ms of a rank", "without group"]]
    for row in rows:
        times = [milliseconds(row.median), milliseconds(row.info["without_group"])]
        lines.append([str(row.info["at"]), f"{row.info['positives']:,}", *times])
    return markdown(lines)


def host(rows: list[Row]) -> str:
    return markdown([["us", "launches"], *([f"{1e6 * row.median:.0f}", str(row.info["launches"])] for row in rows)])


def ahead(rows: list[Row]) -> str:
    lines = []
    for (loss, workload), found in cases(rows).items():
        faster = [f"{peer} {ratio(row)}" for peer, row in found.items() if peer != YARDSTICK and row.ratio[1] < 1]
        lines += [f"- {NAMES[loss]}, {workload}: {', '.join(faster)}"] if faster else []
    return "\n".join(lines)


def markdown(lines: list[list[str]]) -> str:
    """A table with its first line as the head; nothing where there is no other."""
    head, *body = lines
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *body]) if body else ""


def ratio(row: Row) -> str:
    return "{1:.3g} [{0:.3g}, {2:.3g}]".format(*row.ratio)


def error(row: Row) -> str:
    return f"{row.info['error_gradient']:.1e}"


def memory(row: Row) -> str:
    return f"{row.info['extra_memory'] / row.info['gradient_bytes']:.1f}"


def share(row: Row) -> str:
    loss = row.info["loss_seconds"]
    return f"{milliseconds(loss)} in {milliseconds(row.median)}, {loss / row.median:.0%}"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def size(name: str) -> Cell:
    return lambda ours: f"{ours.info[name]:,}" if name in ours.info else ""


SIZES = {name: size(name) for name in ("logits", "positives")}
RELEVANT = {"relevant": size("relevant")}
TIMES = {
    "ours, ms": lambda ours: milliseconds(ours.median),
    "floor": lambda ours: f"{ours.info['floor'] / ours.median:.2f}",
}

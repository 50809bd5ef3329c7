"""The page that is made of result files: tables of ratios, errors, memory and shares."""

import math
import statistics
from collections.abc import Callable

from .peers import OURS
from .results_file import Results, Row, cases

NAMES = {
    "ap": "AP Loss",
    "alrp": "aLRP Loss",
    "rank_sort": "Rank & Sort Loss",
    "iou_balanced_focal": "IoU-balanced focal",
    "iou_balanced_cross_entropy": "IoU-balanced cross-entropy",
    "dr": "DR Loss",
    "harmonic": "Harmonic (focal)",
    "giou": "GIoU",
}
RANKING, POINTWISE = list(NAMES)[:3], list(NAMES)[3:]
AXES = ("negatives", "positives", "relevant", "classes")
TARGETS = (("loop", 10.0), ("bucketed", 4.0))  # on two cores, forward + backward, million-init
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
Columns = dict[str, Callable[[Row], str]]


def page(results: Results, plots: dict[str, str]) -> str:
    """Markdown; `plots` are file names by name, which begins with that of a section."""
    plain, scaling = results.along(), results.along(*AXES)
    ranking, pointwise = ([row for row in plain if row.key[0] in losses] for losses in (RANKING, POINTWISE))
    steps = results.along("training")
    others = {name: column for name, column in SIZES.items() if name != "relevant"}
    sections = (
        ("ranking", "Ranking losses, forward + backward", "", table(ranking, ratio, TIMES)),
        ("targets", "Targets", "", verdicts(ranking)),
        (
            "accuracy",
            "Accuracy against cost",
            ACCURACY,
            table(ranking, lambda row: f"{row.info['error_gradient']:.1e}"),
        ),
        ("memory", "Peak extra memory, in gradients", "The gradient itself is 1.", table(ranking, extra_memory)),
        ("scaling", "Scaling of AP Loss, forward + backward", "", exponents(scaling)),
        (
            "pointwise",
            "Losses that take every logit or box once, forward + backward",
            "",
            table(pointwise, ratio, TIMES),
        ),
        ("training", "End to end", TRAINING, table(steps, share, others)),
        ("ranks", "Over many ranks", RANKS, ranks(results.along("ranks"))),
        ("ahead", "Where a peer is ahead", "", ahead([*plain, *scaling]) or "Nowhere."),
    )
    parts = [header(results)]
    for section, title, explained, body in sections:
        if body:
            figures = [f"![{name}]({file})" for name, file in plots.items() if name.startswith(section)]
            parts += [f"## {title}", *figures, explained, body]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def header(results: Results) -> str:
    """Where the numbers come from, and how to read them."""
    machine, commit = results.machine, results.commit
    loads = [row.info["load"] for row in results.rows if row.info.get("load") is not None]
    lines = [
        f"# Benchmarks: {machine['machine']}\n",
        f"{machine['device']}, threads: {machine['torch_threads']} of {machine['cores']} cores; torch "
        f"{machine['torch']}, triton {machine['triton']}, Python {machine['python']}; commit `{commit['id'][:12]}`"
        f"{', with changes' if commit.get('dirty') else ''}.",
        f"Other processes used {statistics.median(loads):.0%} of the machine meanwhile (median case)." if loads else "",
        "**A quick run at tiny sizes: its numbers say nothing.**" if machine.get("quick") else "",
    ]
    return "\n".join(filter(None, [*lines, READING]))


def table(rows: list[Row], cell: Callable[[Row], str], columns: Columns | None = None) -> str:
    """Cases by peers; `columns` before them are made of our row, which has no cell then where it would be 1."""
    peers = [peer for peer in dict.fromkeys(row.key[2] for row in rows) if cell is not ratio or peer != OURS]
    columns = columns or {}
    lines = [["case", *columns, *peers]]
    for (loss, workload), found in cases(rows).items():
        cells = [cell(found[peer]) if peer in found else "" for peer in peers]
        lines.append([f"{NAMES[loss]}, {workload}", *(make(found[OURS]) for make in columns.values()), *cells])
    return markdown(lines)


def verdicts(rows: list[Row]) -> str:
    """Targets that can be read off this file."""
    case, lines = cases(rows).get(("ap", "million-init"), {}), [["1 M x 1000, all relevant", "measured", "verdict"]]
    for peer, target in TARGETS:
        if peer in case:
            verdict = "met" if case[peer].info["ratio"][1] >= target else "missed"
            lines.append([f"{target:g}x faster than {peer}", ratio(case[peer]), verdict])
    return markdown(lines)


def exponents(rows: list[Row]) -> str:
    """Slopes between the last two places of each axis at which an implementation was measured."""
    lines = [["exponent of time at the end", *AXES]]
    for peer in dict.fromkeys(row.key[2] for row in rows):
        along = [[row for row in rows if row.key[2] == peer and row.info["axis"] == axis] for axis in AXES]
        lines.append([peer, *(f"{exponent(*found[-2:]):.2f}" if len(found) > 1 else "" for found in along)])
    return markdown(lines)


def exponent(low: Row, high: Row) -> float:
    return math.log(high.median / low.median) / math.log(high.info["at"] / low.info["at"])


def ranks(rows: list[Row]) -> str:
    """What a process group adds, by number of ranks."""
    lines = [["ranks", "positives of all", "ms of a rank", "without group", "bytes sent", "bytes of logits"]]
    for row in rows:
        counts = [f"{number:,}" for number in (row.info["bytes"], 4 * row.info["logits"])]
        times = [milliseconds(row.median), milliseconds(row.info["without_group"])]
        lines.append([str(row.info["at"]), f"{row.info['positives']:,}", *times, *counts])
    return markdown(lines)


def ahead(rows: list[Row]) -> str:
    """Where somebody is faster at the same loss."""
    lines = []
    for (loss, workload), found in cases(rows).items():
        others = (row for peer, row in found.items() if peer not in (OURS, "torchvision-focal"))
        faster = [f"{row.key[2]} {ratio(row)}" for row in others if row.info["ratio"][1] < 1]
        lines += [f"- {NAMES[loss]}, {workload}: {', '.join(faster)}"] if faster else []
    return "\n".join(lines)


def markdown(lines: list[list[str]]) -> str:
    """A table with its first line as the head; nothing where there is no other."""
    head, *body = lines
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *body]) if body else ""


def ratio(row: Row) -> str:
    low, middle, high = row.info["ratio"]
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def extra_memory(row: Row) -> str:
    return f"{row.info['extra_memory'] / row.info['gradient_bytes']:.1f}"


def share(row: Row) -> str:
    loss = row.info["loss_seconds"]
    return f"{milliseconds(loss)} in {milliseconds(row.median)}, {loss / row.median:.0%}"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def size(name: str) -> Callable[[Row], str]:
    return lambda ours: f"{ours.info[name]:,}" if name in ours.info else ""


SIZES: Columns = {name: size(name) for name in ("logits", "positives", "relevant")}
TIMES: Columns = SIZES | {
    "ours, ms": lambda ours: milliseconds(ours.median),
    "floor": lambda ours: f"{ours.info['floor'] / ours.median:.2f}",
}

"""The page that is made of result files: tables of ratios, memory, errors and exponents."""

from .peers.peer import OURS
from .results_file import Results, Row, exponent

RANKING = ("ap", "alrp", "rank_sort")
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
AXES = {"negatives": "logits", "positives": "positives", "relevant": "relevant share", "classes": "classes"}
TARGETS = (("loop", 10.0), ("bucketed", 4.0))  # on two cores, forward + backward, million-init


def page(results: Results, plots: dict[str, str]) -> str:
    """Markdown; `plots` are file names by section."""
    ranking = [row for row in results.of() if row.loss in RANKING and "axis" not in row.info]
    pointwise = [row for row in results.of() if row.loss not in RANKING]
    parts = [header(results)]
    if ranking:
        parts += ["## Ranking losses, forward + backward", READING, *figure(plots, "ranking")]
        for loss in RANKING:
            parts += ratios(results, [row for row in ranking if row.loss == loss], f"### {NAMES[loss]}")
        parts += [*verdicts(results, ranking), *errors(results, ranking, plots), *memory(results, ranking)]
    parts += scaling(results, plots)
    if pointwise:
        parts += ["## Losses that take every logit once, forward + backward", *figure(plots, "pointwise")]
        parts += ratios(results, pointwise, "Ratios as above; `torchvision-focal` is another loss, the yardstick.")
    parts += [*training(results), *ranks(results), *ahead(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


READING = (
    "Times are medians over rounds in which all implementations took turns on the same inputs. A ratio is that "
    "implementation's time over ours in the same round: median, and quartiles in brackets; below 1 it is ahead. "
    "`floor` is the time to read the logits twice and write them once at the copy bandwidth measured in the run."
)


def header(results: Results) -> str:
    machine, commit = results.machine, results.commit
    loads = sorted(row.info["load"] for row in results.rows)
    lines = [
        f"# Benchmarks: {machine['machine']}",
        "",
        f"{machine['device']}, threads: {machine['torch_threads']} of {machine['cores']} cores; torch "
        f"{machine['torch']}, triton {machine['triton']}, Python {machine['python']}; commit `{commit['id'][:12]}`.",
    ]
    if commit["changed_since"]:
        lines.append("Files that differed from that commit: " + ", ".join(f"`{f}`" for f in commit["changed_since"]))
    if machine["clock"] == "cpu":
        lines += ["", "Times are processor time of this process: the machine was shared."]
    lines.append(f"Other processes used {100 * loads[len(loads) // 2]:.0f} % of the machine meanwhile (median case).")
    return "\n".join(lines)


def figure(plots: dict[str, str], name: str) -> list[str]:
    return [f"![{name}]({plots[name]})"] if name in plots else []


def ratios(results: Results, rows: list[Row], title: str) -> list[str]:
    """A table of cases by peers."""
    cases = results.cases(rows)
    if not cases:
        return []
    peers = [peer for peer in dict.fromkeys(row.peer for row in rows) if peer != OURS]
    table = [["case", "logits", "positives", "relevant", "ours, ms", *peers, "floor"]]
    for (loss, workload), by_peer in cases.items():
        ours = by_peer[OURS]
        info = ours.info
        name = workload if loss in RANKING else f"{NAMES[loss]}, {workload}"
        cells = [_ratio(by_peer[peer], ours) if peer in by_peer else "" for peer in peers]
        sizes = [_count(info.get(key)) for key in ("logits", "positives", "relevant")]
        table.append([name, *sizes, _milliseconds(ours), *cells, f"{info['floor'] / ours.median:.2f}"])
    return [title, markdown(table)]


def verdicts(results: Results, rows: list[Row]) -> list[str]:
    """Targets that can be read off this file."""
    case = results.cases(rows).get(("ap", "million-init"))
    if case is None:
        return []
    table = [["target at 1 M x 1000, all relevant", "measured", "verdict"]]
    for peer, target in TARGETS:
        if peer in case:
            ratio = case[peer].over(case[OURS])[0]
            verdict = "met" if ratio >= target else "missed"
            table.append([f"{target:g}x faster than {peer}", _ratio(case[peer], case[OURS]), verdict])
    return ["### Targets", markdown(table)]


def errors(results: Results, rows: list[Row], plots: dict[str, str]) -> list[str]:
    """Accuracy against cost."""
    table = [["case", "implementation", "ms", "loss", "gradient, mean", "gradient, largest"]]
    for (loss, workload), by_peer in results.cases(rows).items():
        for peer, row in by_peer.items():
            found = [f"{row.info[key]:.1e}" for key in ("error_loss", "error_gradient", "error_largest")]
            table.append([f"{loss} {workload}", peer, _milliseconds(row), *found])
    explained = (
        "Errors against float64 on the same (rounded) inputs: of the loss relative; of the gradient sum |g - g*| / "
        "sum |g*| and max |g - g*| / max |g*|, the worse of positives and negatives taken by themselves. `bucketed` "
        "is approximate by construction, and its AP form is not interpolated."
    )
    return ["## Accuracy against cost", explained, *figure(plots, "accuracy"), markdown(table)]


def memory(results: Results, rows: list[Row]) -> list[str]:
    """Peak extra memory over the size of the gradient."""
    cases = results.cases(rows)
    peers = list(dict.fromkeys(row.peer for row in rows))
    table = [["case", "gradient, MB", *peers]]
    for (loss, workload), by_peer in cases.items():
        size = by_peer[OURS].info["gradient_bytes"]
        used = [f"{by_peer[p].info['extra_memory'] / size:.1f}" if p in by_peer else "" for p in peers]
        table.append([f"{loss} {workload}", f"{size / 1e6:.1f}", *used])
    return ["## Peak extra memory, in gradients", "Forward and backward; the gradient itself is 1.", markdown(table)]


def scaling(results: Results, plots: dict[str, str]) -> list[str]:
    """Fitted exponents of time and memory."""
    rows = [row for row in results.of() if "axis" in row.info]
    if not rows:
        return []
    table = [["implementation", *(f"{what} ~ {AXES[a]}^" for a in ("negatives", "positives") for what in KINDS)]]
    for peer in dict.fromkeys(row.peer for row in rows):
        cells = [_exponent(rows, peer, axis, kind) for axis in ("negatives", "positives") for kind in KINDS]
        table.append([peer, *cells])
    explained = "Exponents are fitted to the upper half of each axis (AP Loss, forward + backward)."
    return ["## Scaling", explained, *figure(plots, "scaling"), *figure(plots, "scaling-memory"), markdown(table)]


KINDS = ("time", "memory")


def value(row: Row, kind: str) -> float:
    """Seconds, or bytes."""
    return row.median if kind == "time" else row.info["extra_memory"]


def _exponent(rows: list[Row], peer: str, axis: str, kind: str) -> str:
    points = sorted((r.info["at"], value(r, kind)) for r in rows if r.peer == peer and r.info["axis"] == axis)
    upper = points[len(points) // 2 - 1 :] if len(points) > 2 else []
    return f"{exponent(upper):.2f}" if len(upper) > 1 else ""


def training(results: Results) -> list[str]:
    """The share of a training step that the loss takes."""
    table = [["loss", "implementation", "loss, ms", "step, ms", "share", "images/s", "peak memory, MB"]]
    sizes = []
    steps = {(row.case, row.peer): row for row in results.of("step", axis="training")}
    for row in results.of("loss", axis="training"):
        step = steps[row.case, row.peer]
        sizes.append(
            f"{row.workload}: {row.info['images']} images, {_count(row.info['logits'])} logits, "
            f"{_count(row.info['positives'])} positives."
        )
        name = f"{row.workload}, {NAMES[row.loss]}"
        share, speed = row.median / step.median, row.info["images"] / step.median
        memory = f"{row.info['extra_memory'] / 1e6:.0f}"
        table.append([name, row.peer, _milliseconds(row), _milliseconds(step), f"{share:.0%}", f"{speed:.3g}", memory])
    if not sizes:
        return []
    explained = (
        "A step of AdamW, with an L1 loss of the boxes, weights as they begin; `torchvision-focal` in place of the "
        "ranking loss is the yardstick. Loss: its forward and backward, down to the logits. " + " ".join(
            dict.fromkeys(sizes)
        )
    )  # fmt: skip
    return ["## End to end", explained, markdown(table)]


def ranks(results: Results) -> list[str]:
    """What a process group adds, by number of ranks."""
    rows = results.of(axis="ranks")
    if not rows:
        return []
    head = [
        "ranks",
        "positives of all",
        "ms of a rank",
        "without group",
        "bytes a rank sends",
        "logits of a rank, bytes",
    ]
    table = [head]
    for row in rows:
        info = row.info
        alone, logits = f"{1e3 * info['without_group']:.3g}", _count(4 * info["logits"])
        sizes = [str(info["at"]), _count(info["positives"])]
        table.append([*sizes, _milliseconds(row), alone, _count(info["bytes"]), logits])
    explained = (
        "AP Loss, forward and backward, over gloo processes of one thread, 16 images each. Milliseconds are processor "
        "time of a rank: there are more ranks than cores. Without a group every rank ranks its own images alone."
    )
    return ["## Over many ranks", explained, markdown(table)]


def ahead(results: Results) -> list[str]:
    """Where somebody is faster at the same loss."""
    found = []
    for (loss, workload), by_peer in results.cases(results.of()).items():
        faster = [
            f"{peer} {_ratio(row, by_peer[OURS])}"
            for peer, row in by_peer.items()
            if peer not in (OURS, "torchvision-focal") and row.over(by_peer[OURS])[0] < 1
        ]
        if faster:
            found.append(f"- {NAMES[loss]}, {workload}: {', '.join(faster)}")
    return ["## Where a peer is ahead", "\n".join(found) or "Nowhere."]


def markdown(table: list[list[str]]) -> str:
    """A table with its first row as the head."""
    head, *body = table
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])


def _ratio(row: Row, ours: Row) -> str:
    middle, low, high = row.over(ours)
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


def _milliseconds(row: Row) -> str:
    return f"{1e3 * row.median:.3g}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"

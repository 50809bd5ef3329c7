"""Two result files side by side: what became slower or faster by more than its spread."""

from .results_file import Results, Row


def compare(before: Results, after: Results, threshold: float) -> tuple[list[str], bool]:
    """(lines of a Markdown table, whether anything of ours regressed).

    A change counts where the medians differ by more than `threshold` and the quartiles of the two do not overlap.
    """
    known = {_key(row): row for row in before.rows}
    lines = [
        f"before: {_origin(before)}",
        f"after: {_origin(after)}",
        "",
        "| case | before, ms | after, ms | ratio | verdict |",
        "|---|---:|---:|---:|---|",
    ]
    regressed = False
    for row in after.rows:
        old = known.pop(_key(row), None)
        if old is None or old.median == 0:
            continue
        verdict = judge(old, row, threshold)
        regressed |= verdict == "slower" and row.peer == "ours"
        if verdict:
            name = " ".join(_key(row))
            ratio = row.median / old.median
            lines.append(f"| {name} | {_spread(old)} | {_spread(row)} | {ratio:.2f} | {verdict} |")
    if len(lines) == 5:
        lines.append(f"| no change beyond {threshold:g}x and the spread | | | | |")
    return [*lines, "", f"{len(known)} cases of the first file are not in the second."], regressed


def judge(before: Row, after: Row, threshold: float) -> str:
    """ "slower", "faster", or nothing."""
    (low_before, high_before), (low_after, high_after) = before.quartiles(), after.quartiles()
    if after.median > threshold * before.median and low_after > high_before:
        return "slower"
    if before.median > threshold * after.median and low_before > high_after:
        return "faster"
    return ""


def _key(row: Row) -> tuple[str, str, str, str]:
    return row.loss, row.workload, row.peer, row.phase


def _origin(results: Results) -> str:
    return f"{results.machine['machine']}, {results.commit['id'][:10]}, clock {results.machine['clock']}"


def _spread(row: Row) -> str:
    low, high = row.quartiles()
    return f"{1e3 * row.median:.3g} [{1e3 * low:.3g}, {1e3 * high:.3g}]"

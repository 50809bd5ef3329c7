"""Two result files side by side: what became slower or faster by more than its spread."""

from .peers import OURS
from .report import markdown
from .results_file import Results, Row


def compare(before: Results, after: Results, threshold: float) -> tuple[str, bool]:
    """(Markdown, whether anything of ours regressed)."""
    known = {row.key: row for row in before.rows}
    table, regressed = [["case", "before, ms", "after, ms", "ratio", "verdict"]], False
    for row in after.rows:
        old = known.pop(row.key, None)
        if old and (verdict := judge(old, row, threshold)):
            regressed |= verdict == "slower" and row.key[2] == OURS
            table.append([" ".join(row.key), _spread(old), _spread(row), f"{row.median / old.median:.2f}", verdict])
    parts = [f"{name}: {_origin(results)}" for name, results in (("before", before), ("after", after))]
    parts.append(markdown(table) if len(table) > 1 else f"No change beyond {threshold:g}x and the spread.")
    return "\n\n".join([*parts, f"{len(known)} cases of the first file are not in the second."]), regressed


def judge(before: Row, after: Row, threshold: float) -> str:
    """ "slower" or "faster" where the medians differ by more than `threshold` and the quartiles do not overlap."""
    (low_before, old, high_before), (low_after, new, high_after) = before.quartiles, after.quartiles
    if new > threshold * old and low_after > high_before:
        return "slower"
    return "faster" if old > threshold * new and low_before > high_after else ""


def _origin(results: Results) -> str:
    return f"{results.machine['machine']}, commit {results.commit['id'][:10]}"


def _spread(row: Row) -> str:
    low, middle, high = (f"{1e3 * seconds:.3g}" for seconds in row.quartiles)
    return f"{middle} [{low}, {high}]"

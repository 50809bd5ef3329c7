"""`python -m bench report RESULT.json...` and `python -m bench compare BEFORE.json AFTER.json`."""

import argparse
import shutil
import sys
from pathlib import Path

from .peers import OURS
from .report import markdown
from .results_file import ResultFileError, Results, Row, load


def main(arguments: list[str] | None = None) -> int:
    """Run one of the commands; the exit code is 1 for a regression, 2 for a file that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Result files of the benchmark suites.")
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("report", help="one Markdown page and plots")
    page.add_argument("files", nargs="+", type=Path, help="or folders of files bench*.json")
    page.add_argument("--out", type=Path, help="folder; default: bench/results/<machine>")
    two = commands.add_parser("compare", help="flag what became slower; exit code 1 if anything of ours did")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    two.add_argument("--threshold", type=float, default=1.1, help="ratio of medians from which a change counts")
    options = parser.parse_args(arguments)
    try:
        if options.command == "report":
            return report(options.files, options.out)
        text, regressed = compare(load([options.before]), load([options.after]), options.threshold)
    except ResultFileError as error:
        print(error, file=sys.stderr)
        return 2
    print(text)
    return int(regressed)


def report(paths: list[Path], folder: Path | None) -> int:
    """Write README.md, plots and the files themselves into `folder`."""
    from .plots import draw
    from .report import page

    files = [file for path in paths for file in (sorted(path.glob("bench*.json")) if path.is_dir() else [path])]
    results = load(files)
    folder = folder or Path(__file__).parent / "results" / results.machine["machine"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(page(results, draw(results, folder)))
    for file in files:
        if file.resolve().parent != folder.resolve():
            shutil.copy(file, folder / file.name)
    print(folder / "README.md")
    return 0


def compare(before: Results, after: Results, threshold: float) -> tuple[str, bool]:
    """(Markdown, whether anything of ours regressed)."""
    known, regressed = {row.key: row for row in before.rows}, False
    lines = [["case", "before, ms", "after, ms", "ratio", "verdict"]]
    for row in after.rows:
        old = known.pop(row.key, None)
        if old and (verdict := judge(old, row, threshold)):
            regressed |= verdict == "slower" and row.key[2] == OURS
            spreads = ["{1:.3g} [{0:.3g}, {2:.3g}]".format(*(1e3 * x for x in each.quartiles)) for each in (old, row)]
            lines.append([" ".join(row.key), *spreads, f"{row.median / old.median:.2f}", verdict])
    origins = [f"{each.machine['machine']}, commit {each.commit['id'][:10]}" for each in (before, after)]
    changes = markdown(lines) or f"No change beyond {threshold:g}x and the spread."
    missing = f"{len(known)} cases of the first file are not in the second."
    return "\n\n".join(["before: {}, after: {}".format(*origins), changes, missing]), regressed


def judge(before: Row, after: Row, threshold: float) -> str:
    """ "slower" or "faster" where the medians differ by more than `threshold` and the quartiles do not overlap."""
    for first, second, verdict in ((before, after, "slower"), (after, before, "faster")):
        if second.median > threshold * first.median and second.quartiles[0] > first.quartiles[2]:
            return verdict
    return ""


if __name__ == "__main__":
    sys.exit(main())

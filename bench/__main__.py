"""`python -m bench report RESULT.json...` and `python -m bench compare BEFORE.json AFTER.json`."""

import argparse
import shutil
import sys
from pathlib import Path

from .compare import compare
from .results_file import ResultFileError, load


def main(arguments: list[str] | None = None) -> int:
    """Run one of the commands; the exit code is 1 for a regression, 2 for a file that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Result files of the benchmark suites.")
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("report", help="one Markdown page and plots")
    page.add_argument("files", nargs="+", type=Path)
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


def report(files: list[Path], folder: Path | None) -> int:
    """Write README.md, plots and the files themselves into `folder`."""
    from .plots import draw
    from .report import page

    results = load(files)
    folder = folder or Path(__file__).parent / "results" / results.machine["machine"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(page(results, draw(results, folder)))
    for file in files:
        if file.resolve().parent != folder.resolve():
            shutil.copy(file, folder / file.name)
    print(folder / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())

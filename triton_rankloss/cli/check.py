"""Every loss on this machine against the reference in float64: errors, determinism, speed-up, PASS or FAIL."""

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from math import floor, isfinite, log2

import torch
from torch import Tensor

from . import arguments
from .cases import FORMS, SIZES, Case, cases
from .info import device_name, versions
from .operators import implementation, interpreted, on_reference, operators_of

# Of errors relative to the largest entry: sums of many float32 terms, and rounding of the gradient to its dtype, which
# Triton's interpreter truncates.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
NUM_RUNS = 10
LARGEST = (
    2.0**12
)  # of the gradients, where their dtype is narrow: the largest that leaves room, so that small ones count


@dataclass
class Row:
    """What was found out about one loss on one input."""

    loss: str
    variant: str
    dtype: str
    implementation: str
    status: str = "PASS"
    loss_error: float | None = None
    gradient_error: float | None = None
    reference_loss_error: float | None = None  # of the reference in the same dtype
    reference_gradient_error: float | None = None
    deterministic: bool | None = None
    speedup: float | None = None  # over the reference in the same dtype, forward and backward
    note: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where, how large, and where to."""
    parser.add_argument("--device", type=arguments.device, help="default: the GPU, if there is one")
    parser.add_argument("--size", choices=SIZES, help="default: real on a GPU, tiny for the interpreter, else small")
    parser.add_argument("--loss", type=arguments.loss, action="append", help="only this one; may be repeated")
    parser.add_argument("--json", type=arguments.output_file, help="write the rows to this file")


def run(options: argparse.Namespace) -> int:
    """Print a line for every check; returns the exit code, 1 if one failed."""
    device = options.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_kernels = device.type == "cpu" and interpreted()
    size = options.size or ("real" if device.type == "cuda" else "tiny" if on_kernels else "small")
    print(f"{device_name(device)}, torch {torch.__version__}, size {size}: {SIZES[size]._asdict()}")
    if device.type != "cuda" and not on_kernels:
        print("No kernel runs on this device: what is checked is the reference path, in each dtype.")
    print("Errors are relative to the largest entry, against the reference in float64 on the same, rounded, inputs.")
    print(
        _line("loss", "variant", "dtype", "runs on", "loss", "gradient", "(ref loss,", "ref grad)", "x10", "speed", "")
    )
    # Of the interpreter: NumPy warns where a lane that is masked out divides by zero.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton.runtime.interpreter")
    plan = [(form, dtype) for form in FORMS for dtype in TOLERANCE]
    used = {(c.loss, c.variant): operators_of(c) for form in FORMS for c in cases(form, SIZES["tiny"], _CPU)}
    wanted = set(options.loss or [])
    rows: list[Row] = []
    try:
        for form, dtype in _progress(plan):
            for case in cases(form, SIZES[size], device):
                if not wanted or case.loss in wanted:
                    rows.append(check(case, dtype, implementation(used[case.loss, case.variant], device)))
                    _print(rows[-1])
    finally:  # also when interrupted: what was found out is worth keeping
        if options.json is not None:
            machine = {"device": device_name(device), "torch": torch.__version__, "size": size}
            options.json.write_text(json.dumps({**machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    print(f"For an issue, all in one line:\n{summary(rows, device, size)}")
    return 1 if any(row.status == "FAIL" for row in rows) else 0


def summary(rows: list[Row], device: torch.device, size: str) -> str:
    """Versions, device and outcome in one line."""
    counts = [f"{sum(row.status == status for row in rows)} {status}" for status in ("PASS", "FAIL", "SKIP")]
    failed = sorted({f"{row.loss} {row.dtype}" for row in rows if row.status == "FAIL"})
    runs_on = sorted({row.implementation for row in rows})
    where = [f"{device} {device_name(device)}", f"size {size}", " and ".join(runs_on), ", ".join(counts)]
    return " | ".join([*(f"{name} {value}" for name, value in versions().items()), *where, *failed])


_CPU = torch.device("cpu")


def check(case: Case, dtype: torch.dtype, implementation: str) -> Row:
    """Check one loss in one dtype; whatever goes wrong is in the row."""
    row = Row(case.loss, case.variant, str(dtype).removeprefix("torch."), implementation)
    try:
        _check(case, dtype, row)
    except torch.OutOfMemoryError:
        row.status, row.note = "SKIP", "out of memory"
        torch.cuda.empty_cache()
    except Exception as error:  # one loss that fails must not end the check of the others
        row.status, row.note = "FAIL", f"{type(error).__name__}: {error}".splitlines()[0]
    return row


def _check(case: Case, dtype: torch.dtype, row: Row) -> None:
    device = case.leaves[0].device
    leaves = [leaf.to(dtype) for leaf in case.leaves]
    with on_reference(device.type):
        losses, gradients = case.evaluate([leaf.double() for leaf in leaves])
    largest = max(float(gradient.abs().max()) for gradient in gradients)
    if not (isfinite(largest) and largest > 0):
        raise ArithmeticError(f"the reference's own gradient is {largest}: nothing to compare with")
    # A power of two, so that it rounds nothing.
    scale = 1.0 if dtype == torch.float32 else 2.0 ** floor(log2(LARGEST / largest))
    expected = losses, [gradient * scale for gradient in gradients]

    first = case.evaluate(leaves, scale)
    row.loss_error, row.gradient_error = errors(case, first, expected)
    limits = [TOLERANCE[dtype], TOLERANCE[dtype]]
    if row.implementation != "reference":
        with on_reference(device.type):
            reference = errors(case, case.evaluate(leaves, scale), expected)
        row.reference_loss_error, row.reference_gradient_error = reference
        limits = [limit + 2 * error for limit, error in zip(limits, reference, strict=True)]
    row.deterministic = all(_same(case.evaluate(leaves, scale), first) for _ in range(NUM_RUNS - 1))
    if device.type == "cuda" and row.implementation != "reference":
        ours = seconds(case, leaves)
        with on_reference(device.type):
            row.speedup = seconds(case, leaves) / ours
    # A NaN fails every comparison, so the comparison is the one that has to hold.
    if not (row.loss_error <= limits[0] and row.gradient_error <= limits[1]):
        row.status, row.note = "FAIL", f"error beyond {limits[0]:.1e} (loss), {limits[1]:.1e} (gradient)"
    if not row.deterministic:
        row.status, row.note = "FAIL", f"{row.note} differs between runs".strip()


Result = tuple[list[Tensor], list[Tensor]]


def errors(case: Case, actual: Result, expected: Result) -> tuple[float, float]:
    """Largest errors of the losses and of the gradients; those of positives and of negatives are taken apart."""
    of_losses = max(_relative(a, e) for a, e in zip(actual[0], expected[0], strict=True))
    pairs = list(zip(actual[1], expected[1], strict=True))
    if case.positive is not None:
        gradient, truth = pairs.pop(0)
        pairs += [(gradient[mask], truth[mask]) for mask in (case.positive, ~case.positive)]
    return of_losses, max(_relative(a, e) for a, e in pairs)


def _relative(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.double() - expected).abs().max()
    return 0.0 if difference == 0 else float(difference / expected.abs().max())


def _same(actual: Result, first: Result) -> bool:
    pairs = zip([*actual[0], *actual[1]], [*first[0], *first[1]], strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def seconds(case: Case, leaves: list[Tensor], num_runs: int = 5) -> float:
    """Median time on the GPU of a forward and a backward, each started when the device was idle."""
    taken = []
    for _ in range(num_runs + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        case.evaluate(leaves)
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken[1:])


def _progress(plan: list) -> Iterable:
    """A bar on a terminal, if tqdm is there to draw it."""
    if sys.stderr.isatty() and find_spec("tqdm") is not None:
        return import_module("tqdm").tqdm(plan, unit="input", leave=False)
    return plan


def _print(row: Row) -> None:
    line = _line(
        row.loss, row.variant, row.dtype, row.implementation, *(_number(e) for e in _errors_of(row)),
        {True: "same", False: "differ", None: "-"}[row.deterministic],
        "-" if row.speedup is None else f"{row.speedup:.1f}x", f"{row.status} {row.note}".strip(),
    )  # fmt: skip
    if sys.stderr.isatty() and "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line)
    else:
        print(line, flush=True)


def _errors_of(row: Row) -> Iterator[float | None]:
    yield from (row.loss_error, row.gradient_error, row.reference_loss_error, row.reference_gradient_error)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _line(*columns: str) -> str:
    widths = (31, 23, 8, 31, 8, 8, 10, 9, 6, 6, 0)
    return " ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)).rstrip()

"""Every kernel compiled ahead of time, no GPU needed: registers, spills, shared memory; fails on a spill."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pkgutil import walk_packages
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from . import arguments
from .architectures import ARCHITECTURES
from .cases import FORMS, Case, Form, Size, cases
from .operators import interpreted

if TYPE_CHECKING:
    from .launches import Launch, Launches

# Large enough that no number of blocks is 1, which Triton would compile for.
SIZE = Size(2, 1040, 16, 20, 40)
PHASES = ("forward", "backward")
BOUNDED = Form("labels, bounded", ranking=(("max_positives", 48),))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """For which GPUs, how much, and where to."""
    parser.add_argument(
        "--arch",
        action="append",
        help=f"{', '.join(ARCHITECTURES)}, or all of these; may be repeated; default: this machine's GPU",
    )
    parser.add_argument("--quick", action="store_true", help="of the forms of targets, scopes and steps the usual ones")
    parser.add_argument(
        "--dtype", action="append", choices=DTYPES, help="may be repeated; default: all, quick: float32"
    )
    parser.add_argument("--loss", type=arguments.loss, action="append", help="only this one; may be repeated")
    parser.add_argument("--json", type=arguments.output_file, help="write the tables to this file")


class Plan(NamedTuple):
    """What to compile."""

    targets: dict[str, Any]  # Triton's, by the name of their architecture
    forms: Sequence[Form]
    dtypes: Sequence[str]
    losses: Sequence[str] | None  # None: all


def plan_of(options: argparse.Namespace) -> Plan:
    """Read the options; a ValueError says what kernels cannot be compiled for, or without."""
    if interpreted():
        raise ValueError("TRITON_INTERPRET=1 is set: kernels are interpreted, not compiled. Unset it.")
    if find_spec("triton") is None:
        raise ValueError("Triton is not installed: there are no kernels to compile.")
    from . import launches

    named = options.arch or [launches.local_arch()]
    archs = [arch for name in named for arch in (ARCHITECTURES if name == "all" else (name,))]
    if archs == [None]:
        raise ValueError("No GPU here: name an architecture, for instance --arch sm_90.")
    targets = {arch: launches.target_of(arch) for arch in archs}
    forms = (FORMS[0], FORMS[-1]) if options.quick else (*FORMS, BOUNDED)
    dtypes = options.dtype or (["float32"] if options.quick else list(DTYPES))
    return Plan(targets, forms, dtypes, options.loss)


def run(options: argparse.Namespace) -> int:
    """Compile and print; returns the exit code, 1 for a spill, a failure, or a kernel that nothing launches."""
    try:
        plan = plan_of(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    tables = {arch: _table(plan, arch) for arch in plan.targets}
    good = [_report(arch, table) for arch, table in tables.items()]
    if options.json is not None:
        options.json.write_text(json.dumps(tables, indent=1) + "\n")
    return 0 if all(good) else 1


def compiled(plan: Plan, arch: str) -> Iterator[tuple[Case, str, "tuple[Launches, Launches]"]]:
    """(case, dtype, what forward and backward launch) of every loss, the kernels compiled for `arch`."""
    from .launches import launches_of

    for form, dtype in product(plan.forms, plan.dtypes):
        for case in cases(form, SIZE, torch.device("cpu")):
            if plan.losses is None or case.loss in plan.losses:
                yield case, dtype, launches_of(case, SIZE.positives, DTYPES[dtype], plan.targets[arch])


def _table(plan: Plan, arch: str) -> dict[str, Any]:
    """{"kernels": rows, "launches": names per loss, "not launched": kernels that no loss used}."""
    rows: dict[str, dict[str, Any]] = {}
    counts: dict[str, dict[str, dict[str, list[str]]]] = {}
    for case, dtype, both in compiled(plan, arch):
        variant = f"{case.loss} ({', '.join(filter(None, (case.variant, dtype)))})"
        for launch in [launch for phase in both for launch in phase.kernels]:
            key = launch.compiled.hash if launch.compiled is not None else f"{launch.kernel} {variant}"
            if key not in rows:
                rows[key] = _row(launch, variant)
        if both[0].kernels or both[1].kernels:
            name = ", ".join(filter(None, (case.loss, case.variant)))
            counts.setdefault(name, {phase: _names(part) for phase, part in zip(PHASES, both, strict=True)})
    launched = {row["kernel"] for row in rows.values()}
    missing = sorted(set(defined_kernels()) - launched) if plan.losses is None else []
    return {"kernels": sorted(rows.values(), key=lambda r: r["kernel"]), "launches": counts, "not launched": missing}


def _row(launch: "Launch", variant: str) -> dict[str, Any]:
    from .resources import resources

    if launch.compiled is None:
        return {"kernel": launch.kernel, "used by": variant, "error": launch.error}
    return {"kernel": launch.kernel, "used by": variant, **resources(launch.compiled)._asdict()}


def _names(phase: Any) -> dict[str, list[str]]:
    """Of the kernels that a phase launches, ours and torch's."""
    return {"ours": [launch.kernel for launch in phase.kernels], "torch": phase.torch_operators}


def defined_kernels() -> list[str]:
    """Every kernel of the package, as <family>.<name>."""
    from triton.runtime.jit import JITFunction

    from .. import kernels

    found = []
    for module in walk_packages(kernels.__path__, f"{kernels.__name__}."):
        found += [
            f"{module.name.rpartition('.')[2]}.{name}"
            for name, value in vars(import_module(module.name)).items()
            if isinstance(value, JITFunction) and name.endswith("_kernel") and value.__module__ == module.name
        ]
    return found


def _report(arch: str, table: dict[str, Any]) -> bool:
    """Print a table; whether everything is as it should be."""
    print(f"\n{arch}: registers and spilled bytes a thread, bytes of shared memory, warps; used by")
    alike: dict[str, list[str]] = {}  # the variants of a kernel that take the same
    faults = {f"{name} is launched by no loss": [""] for name in table["not launched"]}
    width = max((len(row["kernel"]) for row in table["kernels"]), default=0)
    for row in table["kernels"]:
        if "error" in row:
            faults.setdefault(f"{row['kernel']} does not compile: {row['error']}", []).append(row["used by"])
            continue
        if row["spilled"]:
            faults.setdefault(f"{row['kernel']} spills {row['spilled']} bytes", []).append(row["used by"])
        alike.setdefault(_numbers(row, width), []).append(row["used by"])
    for numbers, users in alike.items():
        print(f"{numbers}  {_first(users)}")
    print("Kernels launched, ours + torch's:")
    for name, phases in table["launches"].items():
        counts = {phase: f"{len(names['ours'])} + {len(names['torch'])}" for phase, names in phases.items()}
        print(f"  {name:48} forward {counts['forward']:8} backward {counts['backward']}")
    for fault, users in faults.items():
        print(f"FAIL {arch}: {fault}  {_first(users)}".rstrip())
    return not faults


def _first(users: list[str]) -> str:
    return users[0] + (f" and {len(users) - 1} more" if len(users) > 1 else "")


def _numbers(row: dict[str, Any], width: int) -> str:
    keys = ("registers", "spilled", "shared", "num_warps")
    numbers = "".join(f"{'?' if row[key] is None else row[key]:>7}" for key in keys)
    return f"{row['kernel']:{width}}{numbers}"

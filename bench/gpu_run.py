"""All that a GPU can tell, by one command: tests, check, kernels and benchmarks, into one folder.

    python -m bench.gpu_run [--device cpu]

Every step is a process with a time limit of its own: one that fails or hangs costs the others nothing. On the CPU the
same steps run at tiny sizes; that is for testing this file.
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from .report import markdown

ROOT = Path(__file__).parents[1]
TOTAL = 440.0  # seconds, for all steps but the report
GRACE = 15.0  # seconds between asking a step to stop, which lets it write what it has, and ending it
# Tests of things that are the same with a GPU.
OFF_GPU = ("ahead_of_time", "bench", "cli", "compare", "distributed", "example", "readme", "results")
OFF_GPU += ("notebooks", "package", "pages", "pictures", "site")
OFF_GPU += ("lightning", "mmdetection", "torchvision", "transformers", "ultralytics")


class Step(NamedTuple):
    name: str
    command: list[str]
    limit: float  # seconds
    needs: tuple[str, ...] = ()  # modules


class Outcome(NamedTuple):
    name: str
    status: str  # ok, failed, out of time, skipped
    seconds: float = 0.0
    note: str = ""


def steps(folder: Path, device: str) -> list[Step]:
    """What to run, the most telling first."""
    package, pytest = ([sys.executable, "-m", module] for module in ("triton_rankloss", "pytest"))
    check = [*package, "check", "--device", device, "--json", str(folder / "check.json")]
    kernels = [*package, "kernels", "--quick", "--json", str(folder / "kernels.json")]
    tests = [*pytest, "-q", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={folder / 'tests.xml'}"]
    limits, options = {"host": 20, "ranking": 130, "pointwise": 60, "scaling": 60, "training": 40}, ["--seconds=0.5"]
    if device == "cuda":
        tests += ["tests", *(f"--ignore-glob=tests/test_{name}*.py" for name in OFF_GPU)]
        tests += ["-n", "8"] if importlib.util.find_spec("xdist") else []
    else:
        check += ["--size", "tiny", "--loss", "ap_loss"]
        kernels += ["--arch", "sm_90", "--loss", "box_iou_loss"]
        tests, limits, options = [*tests, "tests/test_ranking.py"], {"pointwise": 60}, ["--quick", "-k", "giou"]
    found = [
        Step("info", [*package, "info"], 30),
        Step("kernels", kernels, 60, ("triton",)),
        Step("check", check, 130),
        Step("tests", tests, 100, ("pytest", "hypothesis")),
    ]
    for name, limit in limits.items():
        command = [*pytest, "-q", f"bench/test_{name}.py", *options, f"--benchmark-json={folder}/bench-{name}.json"]
        found.append(Step(f"bench-{name}", command, limit, ("pytest", "pytest_benchmark")))
    report = [sys.executable, "-m", "bench", "report", str(folder), "--out", str(folder)]
    return [*found, Step("report", report, 20, ("matplotlib",))]


def run(step: Step, limit: float, log: Path, environment: dict[str, str]) -> Outcome:
    """Run a step within `limit` seconds; what it prints goes to `log`."""
    missing = [module for module in step.needs if importlib.util.find_spec(module) is None]
    if missing or limit <= 0:
        return Outcome(step.name, "skipped", note=f"needs {', '.join(missing)}" if missing else "no time left")
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_take_interrupts,
        )
        try:
            code = process.wait(limit)
            status, note = ("ok", "") if code == 0 else ("failed", f"exit code {code}")
        except subprocess.TimeoutExpired:
            status, note = "out of time", f"limit {limit:.0f} s"
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it started may go on without it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Outcome(step.name, status, round(time.perf_counter() - start, 1), note)


def _take_interrupts() -> None:
    """What was started in the background ignores them, and what it starts would, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def summary(device: str, outcomes: list[Outcome], folder: Path) -> str:
    """One page: how the steps ended, and what they printed."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    steps = markdown([[*Outcome._fields], *([str(value) for value in outcome] for outcome in outcomes)])
    parts = [f"# {device}", f"Commit {commit}; benchmarks: README.md.", steps]
    for log in sorted(folder.glob("*.log"), key=os.path.getmtime):
        parts += [f"## {log.stem}", "```\n" + "\n".join(log.read_text(errors="replace").splitlines()[-100:]) + "\n```"]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run all steps; returns the exit code, 1 if one did not end well."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--out", type=Path, help="folder; default: bench/results/<name of the GPU>")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no GPU; --device cpu tries the steps at tiny sizes.", file=sys.stderr)
        return 2
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    name = device.lower().replace(" ", "-")
    folder = options.out or ROOT / "bench" / "results" / name
    # Results are moved at the end: as long as they are written, the checkout stays what it was when the run began.
    work = ROOT / "out" / "gpu" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    environment.pop("TRITON_INTERPRET", None)
    environment |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}

    start, outcomes = time.perf_counter(), []
    for step in steps(work, options.device):
        print(f"{step.name} ...", flush=True)
        left = TOTAL - (time.perf_counter() - start) - GRACE if step.name != "report" else step.limit
        log = work / f"{step.name}.log"
        outcome = run(step, min(step.limit, left), log, environment)
        outcomes.append(outcome)
        print(f"{step.name}: {outcome.status} {outcome.note} in {outcome.seconds:.0f} s", flush=True)
        if outcome.status in ("failed", "out of time"):
            print(*(f"  | {line}" for line in log.read_text(errors="replace").splitlines()[-12:]), sep="\n", flush=True)
        (work / "summary.md").write_text(summary(device, outcomes, work))
    shutil.copytree(work, folder, dirs_exist_ok=True)
    print(folder / "summary.md")
    return 0 if all(outcome.status in ("ok", "skipped") for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

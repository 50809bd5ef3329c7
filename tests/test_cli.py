"""The command line: what it says of this machine, and that it can tell right from wrong."""

import inspect
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import triton_rankloss as rankloss
from triton_rankloss.__main__ import COMMANDS, main, parser_of_commands
from triton_rankloss.cli import check as checking
from triton_rankloss.cli.advice import GPU, Machine, advice
from triton_rankloss.cli.cases import FORMS, SIZES, Case, cases
from triton_rankloss.cli.operators import launcher, operators

sys.path.append(str(Path(__file__).parents[1]))
from bench import gpu_run

CPU = torch.device("cpu")
LOSSES = {name for name, value in vars(rankloss).items() if inspect.isfunction(value) and name.endswith("_loss")}


def test_every_public_loss_has_a_case():
    assert {case.loss for form in FORMS for case in cases(form, SIZES["tiny"], CPU)} == LOSSES


def test_help_shows_an_example_of_every_command(capsys):
    assert main([]) == 0
    examples = re.findall(r"^  python -m triton_rankloss (.*?) +# ", capsys.readouterr().out, flags=re.MULTILINE)
    parsed = [parser_of_commands().parse_args(shlex.split(example)) for example in examples]
    assert {options.command for options in parsed} == set(COMMANDS)


def test_info_lists_every_loss_with_what_it_runs_on(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line for line in printed.splitlines() if line.split()[:1] and line.split()[0] in LOSSES}
    assert rows.keys() == LOSSES
    expected = "Triton, interpreted" if os.environ.get("TRITON_INTERPRET") == "1" else "reference"
    assert expected in rows["ap_loss"]
    assert torch.__version__ in printed


def test_the_ranking_losses_have_launchers_on_gpus():
    pytest.importorskip("triton")
    launched = {operator._name for operator in operators() if launcher(operator, "cuda") is not None}
    assert {"ap_loss", "alrp_loss", "rank_sort_loss", "transport"} <= launched


def test_check_passes_and_writes_its_rows(tmp_path, capsys):
    file = tmp_path / "rows.json"
    assert main(["check", "--device", "cpu", "--size", "tiny", "--loss", "harmonic_loss", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["dtype"], row["status"], row["deterministic"]) for row in rows] == [
        (dtype, "PASS", True) for dtype in ("float32", "float16", "bfloat16")
    ]
    assert "3 PASS, 0 FAIL" in capsys.readouterr().out


def test_check_ends_with_one_line_for_an_issue(monkeypatch, capsys):
    monkeypatch.setitem(checking.TOLERANCE, torch.bfloat16, -1.0)  # more than any error, however small
    assert main(["check", "--device", "cpu", "--size", "tiny", "--loss", "harmonic_loss"]) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    for part in (f"triton_rankloss {rankloss.__version__} ", f"torch {torch.__version__} ", "cpu ", "2 PASS, 1 FAIL"):
        assert part in line
    assert line.endswith("| harmonic_loss bfloat16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "--loss", "lap_loss"), "no such loss: lap_loss; there are alrp_loss, ap_loss"),
        (("kernels", "--loss", "lap_loss"), "no such loss: lap_loss"),
        (("check", "--device", "gpu"), "'gpu' cannot be used"),
        (("check", "--device", "meta"), "'meta' cannot be used"),
        (("check", "--device", "cuda:99"), "'cuda:99' cannot be used"),
        (("check", "--json", "no_such_folder/rows.json"), "the folder it should be in does not exist"),
        (("kernels", "--json", "."), "is a folder"),
    ],
)
def test_wrong_values_of_options_are_refused_before_any_work(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


WORKING = Machine("Linux", "2.13.0+cu130", "CUDA 13.0", (GPU("cuda:0 (L4)", (8, 9)),), triton=True, compiler=True)


@pytest.mark.parametrize(
    ("machine", "messages"),
    [
        (WORKING, []),
        (WORKING._replace(runtime="HIP 7.0", gpus=(GPU("cuda:0 (MI300X)", None),)), []),
        (WORKING._replace(triton=False), ["pip install 'triton>=3.2'"]),
        (WORKING._replace(torch="2.13.0+cpu", runtime=None, gpus=()), ["2.13.0+cpu is a build for CPUs"]),
        (WORKING._replace(runtime=None, gpus=(), triton=False), ["a build for CPUs", "pip install 'triton>=3.2'"]),
        (WORKING._replace(gpus=()), ["Does nvidia-smi list one? Does CUDA_VISIBLE_DEVICES hide it?"]),
        (WORKING._replace(runtime="HIP 7.0", gpus=()), ["Does rocm-smi list one? Does HIP_VISIBLE_DEVICES hide it?"]),
        (WORKING._replace(gpus=(GPU("cuda:0 (T4)", (7, 5)),)), ["capability 7.5: Triton promises 8.0 and newer"]),
        (WORKING._replace(gpus=(GPU("cuda:0 (P100)", (6, 0)),)), ["capability 6.0: the kernels are made for 7.5"]),
        (WORKING._replace(compiler=False), ["install gcc or clang"]),
        (WORKING._replace(system="Windows", triton=False), ["WSL 2"]),
        (WORKING._replace(system="Darwin", runtime=None, gpus=(), triton=False), ["on Darwin the reference runs."]),
    ],
)
def test_info_says_what_keeps_kernels_from_running(machine, messages):
    found = advice(machine)
    assert len(found) == len(messages)
    assert all(message in hint for message, hint in zip(messages, found, strict=True))


def test_info_prints_advice_where_there_is_no_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(["info"]) == 0
    assert "\nFor the kernels to run on a GPU:\n- PyTorch" in capsys.readouterr().out


def row_of(call, leaf=None):
    leaf = torch.linspace(0.5, 1, 8) if leaf is None else leaf
    positive = torch.arange(leaf.numel()) == 0
    return checking.check(Case("loss", "", call, (leaf,), positive), torch.float32, "reference")


def test_check_finds_a_wrong_loss():
    row = row_of(lambda x: x.square().sum() * (1 if x.dtype == torch.float64 else 1 + 3e-5))
    assert row.status == "FAIL"
    assert row.loss_error == pytest.approx(3e-5, rel=1e-2)


def test_check_finds_a_wrong_gradient_of_negatives_beside_large_ones_of_positives():
    def call(x, wrong=1.001):
        small = torch.full_like(x, 1e-6 * (1 if x.dtype == torch.float64 else wrong))
        small[0] = 1
        return (x * small).sum() - (x.detach() * small).sum()

    row = row_of(call)
    assert row.status == "FAIL"
    assert row.gradient_error == pytest.approx(1e-3, rel=1e-2)
    assert row_of(lambda x: call(x, wrong=1)).status == "PASS"


def test_check_finds_what_differs_from_run_to_run():
    runs = iter(range(100))
    row = row_of(lambda x: x.sum() + 0 * x[0] + (next(runs) % 2) * 1e-6)
    assert (row.status, row.note) == ("FAIL", "differs between runs")


@pytest.mark.parametrize("call", [lambda x: x.sum() * torch.nan, lambda x: x.unsqueeze(0) @ x.unsqueeze(0)])
def test_check_reports_nan_and_exceptions(call):
    row = row_of(call)
    assert row.status == "FAIL"
    assert row.note


def run(*arguments, **environment):
    environment = {**{k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}, **environment}
    command = [sys.executable, "-m", "triton_rankloss", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("--arch", "sm_90"), {"TRITON_INTERPRET": "1"}, "TRITON_INTERPRET=1 is set"),
        (("--arch", "h100"), {}, "arch must be sm_<number> or gfx<number>; got 'h100'"),
        ((), {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}, "name an architecture"),
    ],
)
def test_kernels_says_what_it_needs(arguments, environment, message):
    pytest.importorskip("triton")
    done = run("kernels", *arguments, **environment)
    assert done.returncode == 2
    assert message in done.stderr


SASS = """
        /*0000*/                   FADD R1, R2, R3 ;              /* 0x0000000302017221 */
        /*0010*/                   FFMA.SAT R1, R2, R3, R4 ;
        /*0020*/              @!P0 FADD.FTZ.SAT R5, R2, -R3 ;
        /*0030*/               @P1 BRA 0x10 ;
        /*0040*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0050*/              @UP2 BRA 0x0 ;
        /*0060*/                   EXIT ;
        /*0070*/                   BRA 0x70;
"""


def test_innermost_loops_of_machine_code():
    pytest.importorskip("triton")
    from tools.machine_code import innermost_loops, unrolled

    assert innermost_loops(SASS) == [{"FFMA.SAT": 1, "FADD.SAT": 1}]
    assert unrolled({"FADD": 65, "FADD.SAT": 64, "FMUL": 1}, 64) == 1
    assert unrolled({"FADD": 64, "FFMA.SAT": 32}, 8) == 4


def python(code: str, limit: float, name: str = "step", needs: tuple = ()) -> gpu_run.Step:
    return gpu_run.Step(name, [sys.executable, "-c", code], limit, needs)


@pytest.mark.parametrize(
    ("step", "status"),
    [
        (python("print('fine')", 60), "ok"),
        (python("raise SystemExit(3)", 60), "failed"),
        (python("import time; time.sleep(60)", 0.5), "out of time"),
        (python("", 60, needs=("no_such_module",)), "skipped"),
        (python("", 0), "skipped"),
    ],
    ids=["ok", "failed", "out of time", "missing module", "no time left"],
)
def test_a_step_of_make_gpu_ends_in_one_of_four_ways(step, status, tmp_path):
    outcome = gpu_run.run(step, step.limit, tmp_path / "log", dict(os.environ))
    assert outcome.status == status
    assert outcome.seconds < 30


def test_a_step_that_is_out_of_time_may_still_write_what_it_has(tmp_path):
    code = f"""
import time
try:
    print("started", flush=True)
    time.sleep(60)
finally:
    open({str(tmp_path / "found")!r}, "w").write("something")
"""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in what was started in the background
    try:
        # Long enough for an interpreter to start on a busy machine.
        outcome = gpu_run.run(python(code, 8), 8, tmp_path / "log", dict(os.environ))
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome.status == "out of time"
    assert (tmp_path / "found").read_text() == "something"


def test_one_step_that_fails_costs_the_others_nothing(tmp_path, monkeypatch, capsys):
    some = [python("print('why'); raise SystemExit(3)", 60, "first"), python("", 60, "second")]
    monkeypatch.setattr(gpu_run, "steps", lambda folder, device: some)
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)
    assert gpu_run.main(["--device", "cpu", "--out", str(tmp_path / "results")]) == 1
    page = (tmp_path / "results" / "summary.md").read_text()
    assert "| first | failed |" in page
    assert "| second | ok |" in page
    assert "## first\n\n```\nwhy\n```" in page
    assert "why" in capsys.readouterr().out

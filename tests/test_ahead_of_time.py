"""Every kernel compiles for every GPU that is promised, without spills, and with the instructions that were meant.

In processes of their own: where Triton interprets, it does not compile.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from triton_rankloss.cli.architectures import ARCHITECTURES

pytest.importorskip("triton")

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
ONE_LOSS = tuple(arch for arch in ARCHITECTURES if arch not in ARCHS)  # `make kernels` compiles all losses for these
KERNELS = ("triton_rankloss", "kernels", "--quick")


def arch_options(archs):
    return [option for arch in archs for option in ("--arch", arch)]


COMMANDS = {
    "two": (*KERNELS, "--arch", "sm_80", "--arch", "sm_90"),
    "others": (*KERNELS, "--arch", "sm_100", "--arch", "gfx942"),
    "one loss": (*KERNELS, *arch_options(ONE_LOSS), "--loss", "ap_loss"),
    "float64": (*KERNELS, "--arch", "sm_90", "--dtype", "float64", "--loss", "ap_loss", "--loss", "rank_sort_loss"),
    "loops": ("tools.machine_code", "--quick", "--arch", "sm_90", "--loss", "ap_loss"),
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """What `kernels` finds, by architecture; float64 by itself, and the loops that `tools.machine_code` finds."""
    folder = tmp_path_factory.mktemp("kernels")
    root = Path(__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    running = {}
    for name, arguments in COMMANDS.items():
        command = [sys.executable, "-m", *arguments, "--json", str(folder / name)]
        running[name] = subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    found = {}
    for name, process in running.items():
        errors = process.communicate()[1]
        assert (folder / name).exists(), errors
        content = json.loads((folder / name).read_text())
        found.update({name: content["sm_90"]} if name in ("float64", "loops") else content)
    return found


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "float64"])
def test_every_kernel_compiles_without_a_spill(tables, arch):
    rows = tables[arch]["kernels"]
    assert rows
    assert [(row["kernel"], row["used by"], row["error"]) for row in rows if "error" in row] == []
    assert [(row["kernel"], row["used by"], row["spilled"]) for row in rows if row.get("spilled")] == []


@pytest.mark.parametrize("arch", ARCHS)
def test_every_kernel_is_launched_by_a_loss(tables, arch):
    assert tables[arch]["not launched"] == []


def loops_of(tables, kernel):
    if all(row["registers"] is None for row in tables["sm_90"]["kernels"]):
        pytest.skip("Triton came without its disassembler")
    return tables["loops"][kernel]


def test_a_pair_costs_count_two_instructions(tables):
    # The rescaled loop: a saturating addition and an addition for each pair, and next to nothing for each negative.
    cheapest = loops_of(tables, "pairs._pairs_kernel")[0]
    assert cheapest["instructions"]["FADD.SAT"] == cheapest["pairs"] == 64
    assert sum(cheapest["instructions"].values()) <= 2.1 * cheapest["pairs"]


def test_a_pair_of_far_apart_positives_costs_count_three(tables):
    loops = loops_of(tables, "pairs._pairs_kernel")
    assert len(loops) == 2
    assert sum(loops[1]["instructions"].values()) <= 3.1 * loops[1]["pairs"]


@pytest.mark.parametrize(("loss", "bound"), [("ap_loss", 13), ("alrp_loss", 17), ("rank_sort_loss", 17)])
def test_a_ranking_loss_launches_few_kernels(tables, loss, bound):
    # Small inputs are bound by launches, forward and backward. Torch's own, and the copy that tells the host how many
    # positives there are, count like ours.
    phases = tables["sm_90"]["launches"][f"{loss}, labels"].values()
    assert sum(len(names) for phase in phases for names in phase.values()) <= bound

"""FP32 instructions that the pair kernels of the ranking losses spend on a pair, read from NVIDIA machine code.

    python -m tools.machine_code --arch sm_90 --quick

Takes the options of `python -m triton_rankloss kernels`; no GPU is needed, Triton's disassembler is.
"""

import argparse
import json
import math
import re
import sys
from collections import Counter
from typing import Any, NamedTuple

import triton.language as tl

from triton_rankloss.cli import kernels
from triton_rankloss.cli.resources import cuobjdump

# Kernels over tiles of pairs: the constants that are the sides of a tile.
PAIRS = {
    "pairs._pairs_kernel": ("TILE", "BLOCK"),
    "positives._sort_kernel": ("TILE", "OTHERS"),
    "alrp._rank_kernel": ("TILE", "TILE"),
    "alrp._error_gradient_kernel": ("TILE", "TILE"),
    "rank_sort._error_kernel": ("TILE", "TILE"),
    "rank_sort._sorting_update_kernel": ("TILE", "TILE"),
}
FP32 = ("FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSET", "FSETP", "FADD2", "FMUL2", "FFMA2")


class Loop(NamedTuple):
    """An innermost loop over pairs."""

    pairs: int  # of a thread in one iteration
    instructions: dict[str, int]  # FP32, by name

    def __str__(self) -> str:
        total = sum(self.instructions.values())
        names = ", ".join(f"{count} {name}" for name, count in self.instructions.items())
        return f"{total / self.pairs:.2f} ({names} for {self.pairs})"


def pair_loops(name: str, kernel: Any) -> list[Loop]:
    """The hot loops of kernel `name`, the cheapest first; none without pairs, in float64, or without disassembler."""
    if name not in PAIRS or "cubin" not in kernel.asm:
        return []
    sass = cuobjdump("--dump-sass", kernel.asm["cubin"])
    if sass is None:
        return []
    function = kernel.src.fn
    constants = {function.arg_names[index[0]]: value for index, value in kernel.src.constants.items()}
    if constants["COMPUTE"] == tl.float64:
        return []
    pairs = math.prod(constants[side] for side in PAIRS[name]) // (32 * kernel.metadata.num_warps)
    loops = [Loop(pairs * unrolled(fp32, pairs), fp32) for fp32 in innermost_loops(sass) if sum(fp32.values()) >= pairs]
    return sorted(loops, key=lambda loop: sum(loop.instructions.values()))


def unrolled(instructions: dict[str, int], pairs: int) -> int:
    """How many iterations of the source are one of the machine's: of some kind, a pair takes a single instruction."""
    return max(1, min((n for n in instructions.values() if n >= pairs), default=pairs) // pairs)


def innermost_loops(sass: str) -> list[dict[str, int]]:
    """FP32 instructions, by name, of every loop that holds no other."""
    code = []  # (address, instruction without its predicate, operands)
    for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", sass):
        instruction, _, operands = re.sub(r"^@!?U?P\w+\s+", "", text.strip()).partition(" ")
        code.append((int(address, 16), instruction, operands))
    loops = []
    for address, instruction, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands)
        # A branch to itself follows the end of every program.
        if instruction.startswith("BRA") and target and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    innermost = [
        (start, end)
        for start, end in loops
        if not any((s, e) != (start, end) and start <= s and e <= end for s, e in loops)
    ]
    found = []
    for start, end in innermost:
        names = [name for address, name, _ in code if start <= address <= end]
        found.append(dict(Counter(_plain(name) for name in names if name.partition(".")[0] in FP32).most_common()))
    return found


def _plain(name: str) -> str:
    """Without modifiers that change nothing in what an instruction costs; saturation, which is free, stays."""
    return name.partition(".")[0] + (".SAT" if ".SAT" in name else "")


def loops_of_all(plan: kernels.Plan, arch: str) -> dict[str, list[Loop]]:
    """Of every pair kernel that is launched; where cases compile it differently, of the first."""
    found: dict[str, list[Loop]] = {}
    for _, _, phases in kernels.compiled(plan, arch):
        for launch in [launch for phase in phases for launch in phase.kernels]:
            if launch.kernel not in found and launch.compiled is not None:
                loops = pair_loops(launch.kernel, launch.compiled)
                if loops:
                    found[launch.kernel] = loops
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the loops of every architecture; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.machine_code", description=(__doc__ or "").splitlines()[0])
    kernels.add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        plan = kernels.plan_of(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    found = {arch: loops_of_all(plan, arch) for arch in plan.targets}
    for arch, loops in found.items():
        print(f"\n{arch}: FP32 instructions a pair of each loop")
        for name, ways in sorted(loops.items()):
            print(f"{name:34} {'; '.join(map(str, ways))}")
    if options.json is not None:
        rows = {
            arch: {name: [way._asdict() for way in ways] for name, ways in loops.items()}
            for arch, loops in found.items()
        }
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

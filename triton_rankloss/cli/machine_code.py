"""What a compiled kernel takes of a GPU: registers, spills, shared memory, and the instructions of its hot loops."""

import math
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import triton
import triton.language as tl

# Kernels over tiles of pairs: the constants that are the sides of a tile.
PAIRS = {
    "count._pairs_kernel": ("TILE", "BLOCK"),
    "transport._table_kernel": ("TILE", "TILE"),
    "ap._error_kernel": ("TILE", "TILE"),
    "ap._update_kernel": ("TILE", "TILE"),
    "alrp._rank_kernel": ("TILE", "TILE"),
    "alrp._error_gradient_kernel": ("TILE", "TILE"),
    "rank_sort._error_kernel": ("TILE", "TILE"),
    "rank_sort._sorting_update_kernel": ("TILE", "TILE"),
}
FP32 = ("FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSET", "FSETP", "FADD2", "FMUL2", "FFMA2")


class Resources(NamedTuple):
    """Per thread, and per block of threads; None where no tool tells."""

    registers: int | None
    spilled: int | None  # bytes of local memory a thread
    shared: int  # bytes
    num_warps: int


class Loop(NamedTuple):
    """An innermost loop over pairs."""

    pairs: int  # of a thread in one iteration
    instructions: dict[str, int]  # FP32, by name

    def __str__(self) -> str:
        total = sum(self.instructions.values())
        names = ", ".join(f"{count} {name}" for name, count in self.instructions.items())
        return f"{total / self.pairs:.2f} ({names} for {self.pairs})"


def resources(kernel: Any) -> Resources:
    """Of a kernel that Triton compiled."""
    shared, num_warps = kernel.metadata.shared, kernel.metadata.num_warps
    if "amdgcn" in kernel.asm:

        def number(name: str) -> int:
            found = re.search(rf"\.{name}:\s*(\d+)", kernel.asm["amdgcn"])
            return int(found[1]) if found else 0

        # Scalar registers spill to lanes of vector registers, not to memory.
        return Resources(number("vgpr_count"), number("private_segment_fixed_size"), shared, num_warps)
    usage = _cuobjdump("--dump-resource-usage", kernel.asm["cubin"])
    if usage is None:
        return Resources(None, None, shared, num_warps)
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Resources(used["REG"], used["STACK"] + used["LOCAL"], shared, num_warps)


def pair_loops(name: str, kernel: Any) -> list[Loop]:
    """The hot loops of kernel `name`, the cheapest first; none without pairs, in float64, or without disassembler."""
    if name not in PAIRS or "cubin" not in kernel.asm:
        return []
    sass = _cuobjdump("--dump-sass", kernel.asm["cubin"])
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


def _cuobjdump(option: str, cubin: bytes) -> str | None:
    """What NVIDIA's tool says of a cubin: the one that comes with Triton, or one on the path."""
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tool = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
    if tool is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, option, file.name], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None

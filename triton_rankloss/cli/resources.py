"""What a compiled kernel takes of a GPU: registers, spills, shared memory."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton


class Resources(NamedTuple):
    """Per thread, and per block of threads; None where no tool tells."""

    registers: int | None
    spilled: int | None  # bytes of local memory a thread
    shared: int  # bytes
    num_warps: int


def resources(kernel: Any) -> Resources:
    """Of a kernel that Triton compiled."""
    shared, num_warps = kernel.metadata.shared, kernel.metadata.num_warps
    if "amdgcn" in kernel.asm:

        def number(name: str) -> int:
            found = re.search(rf"\.{name}:\s*(\d+)", kernel.asm["amdgcn"])
            return int(found[1]) if found else 0

        # Scalar registers spill to lanes of vector registers, not to memory.
        return Resources(number("vgpr_count"), number("private_segment_fixed_size"), shared, num_warps)
    usage = cuobjdump("--dump-resource-usage", kernel.asm["cubin"])
    if usage is None:
        return Resources(None, None, shared, num_warps)
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Resources(used["REG"], used["STACK"] + used["LOCAL"], shared, num_warps)


def cuobjdump(option: str, cubin: bytes) -> str | None:
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

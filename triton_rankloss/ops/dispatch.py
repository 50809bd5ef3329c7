"""Where an operator runs: its Triton launcher on GPUs (NVIDIA and AMD), the reference, its own body, elsewhere.

`TRITON_INTERPRET=1`, Triton's own switch, sends CPU tensors through the launchers too: that is how they are tested
without a GPU.
"""

import importlib
import importlib.util
import os
from contextlib import nullcontext
from typing import Any

import torch

FOLDER = dict.fromkeys(("ap", "alrp", "rank_sort", "transport"), "ranking")
DEVICE_TYPES = ("cuda", "cpu") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)


def register_launcher(op: Any, family: str, launcher: str) -> None:
    """Make `launcher` of `kernels/<family>.py` the implementation of `op`; Triton is imported by its first call."""
    if importlib.util.find_spec("triton") is None:
        return

    def launch(*arguments: Any) -> Any:
        module = importlib.import_module(f"..kernels.{FOLDER.get(family, 'pointwise')}.{family}", __package__)
        device = arguments[0].device
        # Triton launches on the current GPU, which need not be the one that holds the tensors.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return getattr(module, launcher)(*arguments)

    op.register_kernel(DEVICE_TYPES)(launch)

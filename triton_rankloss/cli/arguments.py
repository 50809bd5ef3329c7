"""Values of options, refused before any work is done."""

import argparse
from pathlib import Path

import torch

import triton_rankloss as rankloss


def device(text: str) -> torch.device:
    """A device that computes."""
    try:
        found = torch.device(text)
        torch.zeros(1, device=found).item()  # `meta` has no numbers
    # AssertionError: PyTorch was built without CUDA. NotImplementedError: without other devices.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: {reason}") from error
    return found


def output_file(text: str) -> Path:
    """A file that can be written in the end."""
    file = Path(text)
    if file.is_dir() or not file.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, or the folder it should be in does not exist")
    return file


def loss(text: str) -> str:
    """The name of a public loss."""
    known = sorted(name for name in vars(rankloss) if name.endswith("_loss"))
    if text not in known:
        raise argparse.ArgumentTypeError(f"no such loss: {text}; there are {', '.join(known)}")
    return text

"""Fixtures: the device under test, and whether Triton interprets its kernels there."""

import os
import tempfile

import pytest
import torch

# Ultralytics reads these when it is imported: no downloads, and no settings in the user's home.
os.environ["YOLO_OFFLINE"] = "true"
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU where there is one: the same tests then run through its kernels."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def interpreted() -> bool:
    """Whether CPU tensors go through the Triton kernels, interpreted: every block operation then costs milliseconds."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def short_scans(interpreted) -> None:
    """The interpreter goes through a scan of AP Loss entry by entry, padding and all."""
    if interpreted:
        from triton_rankloss.kernels.ranking import ap

        ap.BLOCK = 64

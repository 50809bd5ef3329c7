"""What is built to be installed: the wheel holds the package and its reference, the sdist all that a checkout holds."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).parents[1]
LINK = Path("triton_rankloss/reference")
# Read by the host of git, or made for it.
LEFT_OUT = (".ci/", ".github/", ".gitignore", ".pre-commit-config.yaml", "MANIFEST.in")


def build(form: str, checkout: Path, folder: Path) -> Path:
    code = f"from setuptools import build_meta; print(build_meta.build_{form}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def files():
    """Of this checkout, the new ones included."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: git tells which files belong to it")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [Path(name) for name in listed if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def sources(files, tmp_path_factory):
    """(a copy of the checkout, where nothing is left of earlier builds; the sdist that it makes, unpacked)."""
    checkout, folder = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("sdist")
    for file in files:
        (checkout / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, checkout / file, follow_symlinks=False)
    archive = build("sdist", checkout, folder)
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    return checkout, folder / archive.name.removesuffix(".tar.gz")


def test_the_sdist_holds_what_a_checkout_holds(files, sources):
    missing = [file for file in files if not (sources[1] / file).is_file()]
    assert [str(file) for file in missing if not str(file).startswith(LEFT_OUT) and file != LINK] == []


def in_wheel(file: Path) -> str | None:
    if file.parts[0] == "reference":
        return str(LINK.parent / file)
    return str(file) if file.parts[0] == "triton_rankloss" and file != LINK else None


@pytest.mark.parametrize("source", ["sdist", "checkout", "checkout without links"])
def test_the_wheel_holds_the_package_and_its_reference(files, sources, source, tmp_path):
    checkout, unpacked = sources
    if source == "checkout without links":  # as `git config core.symlinks false` leaves it
        (checkout / LINK).unlink()
        (checkout / LINK).write_text("../reference")
    with zipfile.ZipFile(build("wheel", unpacked if source == "sdist" else checkout, tmp_path)) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert found == {name: (ROOT / file).read_bytes() for file in files if (name := in_wheel(file))}

"""What the repository says of itself: one version, all packages installed, a clear error where links are missing."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import triton_rankloss as rankloss

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()


def test_the_version_stands_in_one_place():
    assert re.search(r'^version = \{ attr = "triton_rankloss.__version__" \}$', PROJECT, flags=re.MULTILINE)
    assert not re.search(r'^version = "', PROJECT, flags=re.MULTILINE)
    assert "version:" not in (ROOT / "CITATION.cff").read_text().replace("cff-version:", "")
    # Builds read the literal without importing torch.
    assert f'\n__version__ = "{rankloss.__version__}"\n' in (ROOT / "triton_rankloss" / "__init__.py").read_text()


def test_the_newest_release_of_the_changelog_is_the_version():
    (newest, *_) = re.findall(r"^## (?!Unreleased$)(\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest == rankloss.__version__


def test_every_package_is_installed():
    listed = re.findall(r'^  "(triton_rankloss[\w.]*)",$', PROJECT, flags=re.MULTILINE)
    folders = {file.parent for file in (ROOT / "triton_rankloss").rglob("__init__.py")}
    folders.add(ROOT / "triton_rankloss" / "reference")  # rglob follows no links
    assert listed == sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)


def test_a_checkout_without_links_says_what_to_do(tmp_path):
    """As `git config core.symlinks false` leaves it: the link is a text file."""
    ignored = shutil.ignore_patterns("reference", "__pycache__")
    shutil.copytree(ROOT / "triton_rankloss", tmp_path / "triton_rankloss", ignore=ignored)
    (tmp_path / "triton_rankloss" / "reference").write_text("../reference")
    # -S: an installation would find the reference.
    command = [sys.executable, "-S", "-c", "import triton_rankloss"]
    done = subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: triton_rankloss.reference is missing")
    assert "pip install --editable ." in message
    assert "git config core.symlinks true" in message

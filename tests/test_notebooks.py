"""The notebooks: made of their pages; the quickstart runs; of the one for a GPU, what can be run without."""

import json
import re
import subprocess
import sys
import zipfile

import pytest
from pages import DOCS, ROOT

sys.path.append(str(ROOT))
from tools.notebooks import PAGES, notebook


def code_cells(name: str) -> list[str]:
    cells = json.loads((DOCS / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", PAGES)
def test_it_is_what_the_page_makes(name):
    made = notebook((DOCS / f"{name}.md").read_text())
    assert json.loads((DOCS / f"{name}.ipynb").read_text()) == made, "run python -m tools.notebooks"
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])
    for code in code_cells(name):
        assert code.startswith("%%bash\n") or compile(code, name, "exec")


def test_quickstart(capsys):
    names: dict = {}
    for code in code_cells("quickstart"):
        if not code.startswith("%%bash"):
            exec(code, names)
    assert names["history"][-1][0] < 0.5 * names["history"][0][0]  # positives have risen above negatives
    assert names["found"].mean_precision > 0.3
    assert names["loss"] == 0
    assert "of the logits pushed" in capsys.readouterr().out


def test_the_archive_for_a_hosted_gpu_is_a_package(tmp_path):
    page = (DOCS / "gpu.md").read_text()
    (archive,) = re.findall(r"^git archive .*$", page, flags=re.MULTILINE)
    (unpack,) = re.findall(r"^tar .*$", page, flags=re.MULTILINE)
    command = archive.split()
    file = tmp_path / "triton_rankloss.tar.gz"
    assert command[-2] == f"--output={file.name}"
    command[-2] = f"--output={file}"
    if subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode:
        pytest.skip("not in a git checkout")
    subprocess.run(unpack.split(), cwd=tmp_path, check=True)
    # The link to the reference has survived: the package imports from the folder that the cells enter.
    run = [sys.executable, "-c", "import triton_rankloss.reference as found; print(found.__file__)"]
    done = subprocess.run(run, cwd=tmp_path / "triton_rankloss", capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path))


def test_results_are_packed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "summary.md").write_text("ok")
    (pack,) = [code for code in code_cells("gpu") if not code.startswith("%%bash")]
    exec(pack, {})
    assert zipfile.ZipFile(tmp_path / "results.zip").namelist() == ["summary.md"]

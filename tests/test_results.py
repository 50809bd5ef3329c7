"""examples/results.py: what was done is kept and not done again; pages in docs/ show the tables of the result files."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed; the extra 'examples' brings it")

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))
InputError = pytest.importorskip("data").InputError
results = pytest.importorskip("results")


def run(loss: str, seed: int, ap: float) -> dict:
    return {"model": "small", "loss": loss, "seed": seed, "ap": ap, "ap50": 0.5, "ap75": 0.25}


def test_a_command_that_was_killed_goes_on_where_it_stopped(tmp_path):
    settings = {"epochs": 3, "size": [256, 192]}
    file = results.Results(tmp_path / "new", (), settings)
    file.add(run("ap", 0, 0.25))
    again = results.Results(tmp_path / "new", (), settings)
    assert again.has("small", "ap", 0)
    assert not again.has("small", "ap", 1)
    assert not again.has("small", "focal", 0)
    assert not again.has("large", "ap", 0)
    again.add(run("focal", 0, 0.125))
    assert [entry["loss"] for entry in json.loads(again.path.read_text())["runs"]] == ["ap", "focal"]


def test_other_settings_are_refused(tmp_path):
    results.Results(tmp_path, (), {"epochs": 3}).add(run("ap", 0, 0.25))
    with pytest.raises(InputError, match="other settings"):
        results.Results(tmp_path, (), {"epochs": 4})


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        results.Results(tmp_path / "file", (), {})


def test_table():
    rows = results.table([run("ap", 0, 0.25), run("ap", 1, 0.75), run("focal", 0, 0.125)]).splitlines()[2:]
    assert rows == [
        "| small | ap | 0.500 (0.250 to 0.750) | 0.500 | 0.250 |",
        "| small | focal | 0.125 | 0.500 | 0.250 |",
    ]


RESULTS = ROOT / "examples" / "results"
OF_PAGES = sorted([*RESULTS.glob("*/results.json"), *RESULTS.glob("transformers/*/results.json")])


@pytest.mark.parametrize("file", OF_PAGES, ids=str)
def test_the_page_of_a_stack_shows_its_results(file):
    page = (ROOT / "docs" / f"{file.relative_to(RESULTS).parts[0]}.md").read_text()
    assert results.table(json.loads(file.read_text())["runs"]) in page

"""The README: its snippets run, its links lead somewhere, its numbers are those of the committed result files."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def test_snippets_run_and_move_the_logits():
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, names)
    assert len(snippets) == 3
    assert names["logits"].grad.abs().max() > 0
    assert names["pred_boxes"].grad.abs().max() > 0
    assert torch.equal(names["bounded"], names["loss"])


def test_every_loss_in_the_table_exists():
    import triton_rankloss as rankloss

    table = [line for line in README.read_text().splitlines() if line.startswith("| `")]
    functions = {name for line in table for name in re.findall(r"`(\w+_loss)`", line)}
    public = {name for name in dir(rankloss) if name.endswith("_loss")}
    assert functions == public


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target


def test_performance_is_what_the_result_file_says():
    sys.path.append(str(README.parent))
    from bench.results_file import cases, load

    found = cases(load([README.parent / "bench" / "results" / "cpu-2core" / "bench.json"]).along())
    section = README.read_text().split("## Performance")[1].split("\n## ")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    assert head[1] == "ours, ms"
    assert rows
    for name, milliseconds, *ratios in rows:
        measured = found["ap", name]
        assert milliseconds == f"{1e3 * measured['ours'].median:.2g}"
        for peer, ratio in zip(head[2:], ratios, strict=True):
            assert ratio == f"{measured[peer].ratio[1]:.2g}", (name, peer)


def test_average_precisions_are_those_of_the_result_files():
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed; the extra 'examples' brings it")
    sys.path.append(str(README.parent / "examples"))
    overview = pytest.importorskip("compare_page").overview
    folder = README.parent / "examples" / "results" / "compare"
    found = [json.loads((folder / name / "results.json").read_text()) for name in ("digits", "folder")]
    table = overview({content["settings"]["data"]: content["runs"] for content in found})
    assert "\n".join(table[2:]) in README.read_text()

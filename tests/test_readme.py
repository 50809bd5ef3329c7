"""The README's snippets run, one after the other as a reader would type them."""

import re
from pathlib import Path

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
    import triton_rankloss as trl

    table = [line for line in README.read_text().splitlines() if line.startswith("| `")]
    functions = {name for line in table for name in re.findall(r"`(\w+_loss)`", line)}
    public = {name for name in dir(trl) if name.endswith("_loss")}
    assert functions == public


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target

"""The pages: snippets compile, links lead somewhere, overrides of frameworks that are not here run on stand-ins.

The loss that CONTRIBUTING.md adds is a loss, and the tree of the architecture page holds every file.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
LEVELS = ((4, 4), (2, 2))
IMAGES, ANCHORS, CLASSES = 2, 3, 5


def snippets(name: str) -> list[str]:
    page = next(page for page in PAGES if page.name == name)
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_snippets_compile_and_links_lead_somewhere(page):
    text = page.read_text()
    for snippet in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        compile(snippet, page.name, "exec")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    images = re.findall(r'src(?:set)?="(?!http)([^"]+)"', text)
    for target in links + images:
        assert (page.parent / target).exists(), target


def test_the_tree_of_the_architecture_page_holds_every_file():
    (tree,) = re.findall(r"```\n(triton_rankloss/\n.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    listed = {
        folder: sorted(re.findall(r"^  (\S+)", files, flags=re.MULTILINE))
        for folder, files in re.findall(r"^(\S+/)\n((?:  .*\n)+)", tree, flags=re.MULTILINE)
    }
    assert len(listed) == 10
    assert listed == {
        folder: sorted(file.name for file in (ROOT / folder).glob("*.py") if not file.name.startswith("__"))
        for folder in listed
    }


def test_the_table_of_architectures_is_that_of_the_result_file():
    sys.path.append(str(ROOT))
    from tools.architectures import SUMMARY, table_of
    from triton_rankloss.cli.architectures import ARCHITECTURES

    summary = json.loads(SUMMARY.read_text())
    page = (ROOT / "docs" / "architectures.md").read_text()
    assert list(summary["architectures"]) == list(ARCHITECTURES)
    assert table_of(summary) in page
    assert f"Triton {summary['triton']}" in page


ADDED_LOSS = """
import re, sys
from pathlib import Path
from types import ModuleType

import torch

import triton_rankloss.reference

formula, loss, _ = re.findall(r"```python\\n(.*?)```", Path("CONTRIBUTING.md").read_text(), flags=re.DOTALL)
for name, code in (("triton_rankloss.reference.logistic", formula), ("triton_rankloss.logistic", loss)):
    module = sys.modules[name] = ModuleType(name)
    module.__package__ = name.rpartition(".")[0]
    setattr(sys.modules[module.__package__], "logistic", module)
    exec(compile(code, name, "exec"), vars(module))

logits = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
labels = torch.tensor([[0, 3, 3, -1, 2], [1, 3, -1, 3, 0]])
wanted = torch.nn.functional.one_hot(labels.clamp(min=0), 4)[..., :3].double()
terms = torch.nn.functional.binary_cross_entropy_with_logits(2 * logits, wanted, reduction="none")
expected = terms[labels >= 0].sum() / (2 * 4)
found = torch.compile(module.LogisticLoss(scale=2.0), backend="eager", fullgraph=True)(logits, labels)
torch.testing.assert_close(found, expected)
torch.testing.assert_close(torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits))
"""


def test_the_loss_that_contributing_adds():
    # In a process of its own: an operator stays.
    done = subprocess.run([sys.executable, "-c", ADDED_LOSS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_deprecated_function_warns_and_compiles():
    names: dict = {}
    exec(snippets("stability.md")[0], names)
    logits, labels = torch.randn(2, 5, 3), torch.tensor([[0, 3, 3, -1, 2], [1, 3, -1, 3, 0]])
    with pytest.warns(FutureWarning, match="goes in 0.4") as warned:
        found = names["average_precision_loss"](logits, labels)
    assert warned[0].filename == __file__
    compiled = torch.compile(names["average_precision_loss"], backend="eager", fullgraph=True)
    assert torch.equal(compiled(logits, labels), found)


def stand_in(monkeypatch, name: str, **contents) -> None:
    module = ModuleType(name)
    module.__dict__.update(contents)
    monkeypatch.setitem(sys.modules, name, module)


class Registry:
    def register(self):
        return lambda cls: cls

    register_module = register


class Coder:
    """Boxes as plain offsets from their anchors."""

    def decode(self, anchors, deltas):
        return anchors + deltas

    def apply_deltas(self, deltas, anchors):
        return anchors + deltas


def anchors_of(level: int) -> torch.Tensor:
    corners = torch.rand(LEVELS[level][0] * LEVELS[level][1] * ANCHORS, 2)
    return torch.cat((corners, corners + 1), dim=1)


def check(losses, *leaves):
    assert {"loss_ranking", "loss_sorting"} < set(losses)
    assert all(part.dim() == 0 and part > 0 for part in losses.values())
    sum(losses.values()).backward()
    assert all(leaf.grad.abs().sum() > 0 for level in leaves for leaf in level)


def test_detectron2(monkeypatch):
    class RetinaNet(torch.nn.Module):
        num_classes, box2box_transform = CLASSES, Coder()

    boxes = SimpleNamespace(cat=lambda levels: SimpleNamespace(tensor=torch.cat([level.tensor for level in levels])))
    stand_in(monkeypatch, "detectron2")
    stand_in(monkeypatch, "detectron2.modeling", META_ARCH_REGISTRY=Registry())
    stand_in(monkeypatch, "detectron2.modeling.meta_arch")
    stand_in(monkeypatch, "detectron2.modeling.meta_arch.retinanet", RetinaNet=RetinaNet)
    stand_in(monkeypatch, "detectron2.structures", Boxes=boxes)
    names: dict = {}
    exec(snippets("detectron2.md")[0], names)
    anchors = [SimpleNamespace(tensor=anchors_of(level)) for level in range(len(LEVELS))]
    sizes = [len(level.tensor) for level in anchors]
    logits = [torch.randn(IMAGES, size, CLASSES, requires_grad=True) for size in sizes]
    deltas = [(0.1 * torch.randn(IMAGES, size, 4)).requires_grad_() for size in sizes]
    labels = torch.randint(-1, CLASSES + 1, (IMAGES, sum(sizes)))
    boxes = torch.cat([level.tensor for level in anchors]).expand(IMAGES, -1, 4)
    check(names["RankSortRetinaNet"]().losses(anchors, logits, list(labels), deltas, list(boxes)), logits, deltas)

"""The guides: snippets compile, links lead somewhere, overrides of frameworks that are not here run on stand-ins."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

GUIDES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
LEVELS = ((4, 4), (2, 2))
IMAGES, ANCHORS, CLASSES = 2, 3, 5


def snippets(name: str) -> list[str]:
    guide = next(guide for guide in GUIDES if guide.name == name)
    return re.findall(r"```python\n(.*?)```", guide.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_snippets_compile_and_links_lead_somewhere(guide):
    for snippet in snippets(guide.name):
        compile(snippet, guide.name, "exec")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", guide.read_text()):
        assert (guide.parent / target).exists(), target


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


@pytest.mark.parametrize("decoded", [False, True])
def test_mmdetection(monkeypatch, decoded):
    anchors = [anchors_of(level) for level in range(len(LEVELS))]
    labels = [torch.randint(0, CLASSES + 1, (IMAGES, len(level))) for level in anchors]
    weights = [(torch.rand(level.shape) > 0.2).float() for level in labels]
    targets = [level.expand(IMAGES, -1, 4) * decoded for level in anchors]

    class RetinaHead(torch.nn.Module):
        num_classes = cls_out_channels = CLASSES
        bbox_coder, reg_decoded_bbox = Coder(), decoded

        def get_anchors(self, sizes, metas, device):
            assert [tuple(size) for size in sizes] == list(LEVELS)
            return [anchors] * IMAGES, None

        def get_targets(self, anchors, valid, instances, metas, batch_gt_instances_ignore):
            return labels, weights, targets, None, 1

    stand_in(monkeypatch, "mmdet")
    stand_in(monkeypatch, "mmdet.models")
    stand_in(monkeypatch, "mmdet.models.dense_heads", RetinaHead=RetinaHead)
    stand_in(monkeypatch, "mmdet.registry", MODELS=Registry())
    stand_in(monkeypatch, "mmdet.structures")
    stand_in(monkeypatch, "mmdet.structures.bbox", cat_boxes=torch.cat, get_box_tensor=lambda boxes: boxes)
    names: dict = {}
    exec(snippets("mmdetection.md")[0], names)
    maps = [torch.randn(IMAGES, ANCHORS * CLASSES, *size, requires_grad=True) for size in LEVELS]
    deltas = [(0.1 * torch.randn(IMAGES, ANCHORS * 4, *size)).requires_grad_() for size in LEVELS]
    check(names["RankSortRetinaHead"]().loss_by_feat(maps, deltas, None, None), maps, deltas)

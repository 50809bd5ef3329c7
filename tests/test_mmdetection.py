"""mmdetection's RetinaNet and ATSS with the losses; `make test-mmdetection` runs this where mmdetection is installed.

What mmdetection computes itself, one level after another, is what the heads are compared with.
"""

import re
from pathlib import Path

import processes
import pytest
import torch
from torch import nn

import triton_rankloss as rankloss

pytest.importorskip("mmcv", reason="mmcv is not installed; make test-mmdetection has it")
pytest.importorskip("mmdet", reason="mmdet is not installed; make test-mmdetection has it")

from mmdet.models.dense_heads import ATSSHead, RetinaHead
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData

from triton_rankloss.integrations.mmdetection import RankLossATSSHead, RankLossRetinaHead

ROOT = Path(__file__).parents[1]
NUM_CLASSES = 3
STRIDES = [8, 16, 32]
SIZE = (64, 96)
register_all_modules()


@MODELS.register_module()
class Seen(nn.Module):
    """In place of a loss: keeps what mmdetection calls it with, level by level."""

    def __init__(self, use_sigmoid: bool = True):
        super().__init__()
        self.calls: list[tuple[torch.Tensor, ...]] = []

    def forward(self, prediction, target, weight=None, avg_factor=None):
        self.calls.append((prediction, target, weight))
        return prediction.sum()


def settings(kind, **changes):
    assigner = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0}
    anchors = {"octave_base_scale": 3, "scales_per_octave": 2, "ratios": [0.5, 1.0, 2.0]}
    if issubclass(kind, ATSSHead):
        assigner = {"type": "ATSSAssigner", "topk": 9}
        anchors = {"octave_base_scale": 4, "scales_per_octave": 1, "ratios": [1.0]}
    test = {"nms_pre": 100, "min_bbox_size": 0, "score_thr": 0.0, "nms": {"type": "nms", "iou_threshold": 0.6}}
    return {
        "num_classes": NUM_CLASSES,
        "in_channels": 32,
        "feat_channels": 32,
        "stacked_convs": 1,
        "anchor_generator": {"type": "AnchorGenerator", "strides": STRIDES, **anchors},
        "train_cfg": ConfigDict(assigner=assigner, allowed_border=-1, pos_weight=-1, debug=False),
        "test_cfg": ConfigDict(max_per_img=20, **test),
        **changes,
    }


def make_head(kind, **changes):
    """The same weights in every head of one kind, whatever it was made with."""
    head = kind(**settings(kind, **changes))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(head.named_parameters()):
        if "centerness" not in name:
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return head


def ranked(kind, loss="RankSortLoss", **changes):
    return make_head(kind, loss={"type": loss} if isinstance(loss, str) else loss, **changes)


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(2)
    sizes = [(SIZE[0] // stride, SIZE[1] // stride) for stride in STRIDES]
    return tuple(torch.randn(2, 32, *size, generator=generator) for size in sizes)


def objects(boxes, labels):
    return InstanceData(bboxes=torch.tensor(boxes).view(-1, 4), labels=torch.tensor(labels, dtype=torch.long))


FIRST = objects([[4.0, 4.0, 28.0, 30.0], [20.0, 16.0, 70.0, 60.0]], [1, 2])
SECOND = objects([[40.0, 10.0, 60.0, 50.0]], [0])
EMPTY = objects([], [])
META = {"img_shape": SIZE, "pad_shape": SIZE, "ori_shape": SIZE, "scale_factor": (1.0, 1.0)}
HEADS = pytest.mark.parametrize(
    ("own", "kind"), [(RetinaHead, RankLossRetinaHead), (ATSSHead, RankLossATSSHead)], ids=["retina", "atss"]
)


def losses_of(head, maps, instances):
    return head.loss_by_feat(*head(maps), instances, [META] * len(instances))


@HEADS
@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("instances", [[FIRST, SECOND], [FIRST, EMPTY]], ids=["objects", "one-without"])
def test_matches_are_what_mmdetection_gives_its_own_losses(own, kind, decoded, instances, maps):
    if own is ATSSHead and not decoded:
        pytest.skip("ATSS compares decoded boxes alone")
    seen = make_head(
        own, loss_cls={"type": "Seen", "use_sigmoid": True}, reg_decoded_bbox=decoded, loss_bbox={"type": "Seen"}
    )
    losses_of(seen, maps, instances)
    # Of every level: [B * A, ...], images first.
    logits, labels, weights = (
        torch.cat([value.view(2, -1, *value.shape[1:]) for value in levels], dim=1)
        for levels in zip(*seen.loss_cls.calls)
    )
    positive = (labels < NUM_CLASSES) & (weights > 0)
    head = ranked(kind, reg_decoded_bbox=decoded)
    found = head.match(*head(maps), instances, [META] * 2)
    torch.testing.assert_close(found.logits, logits)
    assert torch.equal(found.labels, torch.where(weights > 0, labels, -1))
    assert len(found.boxes) == positive.sum() > 2
    if own is ATSSHead:  # it gives its box loss the positives of one level after another
        pairs = torch.cat([torch.cat(call[:2], dim=1) for call in seen.loss_bbox.calls])
        ours = torch.cat((found.boxes, found.target_boxes), dim=1)
        torch.testing.assert_close(ours[ours[:, 0].argsort()], pairs[pairs[:, 0].argsort()])
        return
    boxes, targets = (
        torch.cat([call[part].view(2, -1, 4) for call in seen.loss_bbox.calls], dim=1)[positive] for part in (0, 1)
    )
    torch.testing.assert_close(found.boxes if decoded else found.deltas, boxes)
    torch.testing.assert_close(found.target_boxes if decoded else found.target_deltas, targets)


def test_offsets_and_boxes_tell_the_same():
    """Whichever of them the config compares: of the anchors that have the object, boxes are the object."""
    maps = tuple(torch.zeros(1, 32, SIZE[0] // stride, SIZE[1] // stride) for stride in STRIDES)
    for decoded in (False, True):
        head = ranked(RankLossRetinaHead, reg_decoded_bbox=decoded)
        nn.init.zeros_(head.retina_reg.weight)
        nn.init.zeros_(head.retina_reg.bias)
        found = head.match(*head(maps), [SECOND], [META])
        torch.testing.assert_close(found.target_boxes, SECOND.bboxes.expand(len(found.boxes), 4))
        # No offset: the anchor. Its centre is off by dx widths, its width by exp(dw).
        width, centre = found.boxes[:, 2] - found.boxes[:, 0], (found.boxes[:, 2] + found.boxes[:, 0]) / 2
        torch.testing.assert_close(found.target_deltas[:, 0], (50 - centre) / width)
        torch.testing.assert_close(found.target_deltas[:, 2], (20 / width).log())


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        ({"type": "APLoss"}, ["loss_bbox", "loss_cls"]),
        ({"type": "DRLoss", "per_image": True}, ["loss_bbox", "loss_cls"]),
        ({"type": "IoUBalancedFocalLoss"}, ["loss_bbox", "loss_cls"]),
        ({"type": "IoUBalancedBCELoss"}, ["loss_bbox", "loss_cls"]),
        ({"type": "ALRPLoss", "steps_per_epoch": 10}, ["loss_bbox", "loss_cls"]),
        ({"type": "RankSortLoss", "delta": 0.25}, ["loss_bbox", "loss_ranking", "loss_sorting"]),
        ({"type": "HarmonicDetectionLoss", "classification": "focal"}, ["loss_detection"]),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
@HEADS
def test_every_loss_reaches_every_parameter(own, kind, loss, parts, maps):
    head = ranked(kind, loss)
    for instances in ([FIRST, SECOND], [FIRST, EMPTY], [EMPTY, EMPTY]):
        head.zero_grad()
        losses = losses_of(head, maps, instances)
        assert sorted(losses) == parts
        assert all(part.dim() == 0 and part.isfinite() for part in losses.values())
        sum(losses.values()).backward()
        # Even without objects: DistributedDataParallel waits for every one of them.
        assert all(parameter.grad is not None for parameter in head.parameters())
        if instances[0] is not EMPTY:
            assert all(p.grad.abs().sum() > 0 for name, p in head.named_parameters() if "scales" not in name)


def test_without_objects_ranking_losses_are_zero(maps):
    for loss in ("APLoss", "ALRPLoss", "RankSortLoss"):
        losses = losses_of(ranked(RankLossATSSHead, loss), maps, [EMPTY, EMPTY])
        assert all(part.item() == 0 for part in losses.values())


def test_all_levels_are_ranked_at_once(maps):
    head = ranked(RankLossRetinaHead, "APLoss")
    matches = head.match(*head(maps), [FIRST, SECOND], [META] * 2)
    expected = rankloss.ap_loss(matches.logits, matches.labels)
    assert losses_of(head, maps, [FIRST, SECOND])["loss_cls"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("box", [{"type": "L1Loss"}, {"type": "GIoULoss", "loss_weight": 2.0}], ids=["l1", "giou"])
def test_boxes_of_a_loss_of_classes_are_mmdetections(box, maps):
    changes = {"loss_bbox": box, "reg_decoded_bbox": box["type"] == "GIoULoss"}
    expected = losses_of(make_head(RetinaHead, **changes), maps, [FIRST, SECOND])["loss_bbox"]
    found = losses_of(ranked(RankLossRetinaHead, "APLoss", **changes), maps, [FIRST, SECOND])["loss_bbox"]
    torch.testing.assert_close(found, sum(expected))


@pytest.mark.parametrize("group", [{}, {"group": "world"}], ids=["own", "world"])
def test_balanced_boxes(group, maps):
    box = {"type": "IoUBalancedSmoothL1Loss", **group}
    head = ranked(RankLossRetinaHead, "IoUBalancedFocalLoss", loss_bbox=box)
    matches = head.match(*head(maps), [FIRST, SECOND], [META] * 2)
    expected = rankloss.iou_balanced_smooth_l1_loss(
        matches.deltas, matches.target_deltas, pred_boxes=matches.boxes, target_boxes=matches.target_boxes
    )
    torch.testing.assert_close(losses_of(head, maps, [FIRST, SECOND])["loss_bbox"], expected)


@HEADS
def test_detections_have_the_score_of_their_class(own, kind, maps):
    """Of ATSS too: no centerness, and no threshold."""
    head = ranked(kind).eval()
    with torch.no_grad():
        outputs = head(maps)
        (found, _) = head.predict_by_feat(*outputs, batch_img_metas=[META] * 2, rescale=False)
    best = max(level[0].max().item() for level in outputs[0])
    assert len(found.scores) == 20
    assert found.scores.max().item() == pytest.approx(torch.tensor(best).sigmoid().item(), rel=1e-6)


def test_under_autocast(maps):
    for kind in (RankLossRetinaHead, RankLossATSSHead):
        head = ranked(kind)
        with torch.autocast("cpu", torch.bfloat16):
            losses = losses_of(head, maps, [FIRST, SECOND])
        assert all(part.isfinite() and part.dtype == torch.float32 for part in losses.values())


def test_bad_configs(maps):
    with pytest.raises(TypeError, match=r"loss must be one of APLoss, .*; got FocalLoss"):
        ranked(RankLossRetinaHead, {"type": "FocalLoss", "use_sigmoid": True})
    with pytest.raises(ValueError, match="loss_cls must have use_sigmoid=True"):
        ranked(RankLossRetinaHead, loss_cls={"type": "CrossEntropyLoss"})
    with pytest.raises(ValueError, match="delta must be"):
        ranked(RankLossATSSHead, {"type": "APLoss", "delta": -1.0})
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'loss'"):
        make_head(RankLossRetinaHead)
    with pytest.raises(TypeError, match=r"loss must be a config, .*; got RankSortLoss"):
        make_head(RankLossRetinaHead, loss=rankloss.RankSortLoss())
    with pytest.raises(KeyError, match="RankSort is not in the mmdet::model registry"):
        ranked(RankLossRetinaHead, "RankSort")


def of_rank(rank: int, world_size: int, group) -> tuple:
    """The losses and a gradient of one image of two."""
    torch.manual_seed(2)
    generator = torch.Generator().manual_seed(2)
    sizes = [(SIZE[0] // stride, SIZE[1] // stride) for stride in STRIDES]
    own = tuple(torch.randn(2, 32, *size, generator=generator)[rank : rank + 1] for size in sizes)
    results = []
    for loss in ("RankSortLoss", "APLoss"):
        head = ranked(RankLossRetinaHead, {"type": loss, "group": "world"})
        losses = losses_of(head, own, [(FIRST, SECOND)[rank]])
        sum(part for name, part in losses.items() if name != "loss_bbox").backward()
        results.append(({name: part.item() for name, part in losses.items()}, head.retina_cls.weight.grad))
    return results


def test_group_world_ranks_all_processes(maps):
    ranks = processes.run(of_rank, 2)
    for index, loss in enumerate(("RankSortLoss", "APLoss")):
        head = ranked(RankLossRetinaHead, {"type": loss, "group": "world"})  # one process: no group
        assert head.criterion.group is None
        losses = losses_of(head, maps, [FIRST, SECOND])
        classes = {name: part for name, part in losses.items() if name != "loss_bbox"}
        sum(classes.values()).backward()
        for name, part in classes.items():
            for rank in ranks:
                assert rank[index][0][name] == pytest.approx(part.item(), rel=1e-5)
        mean = (ranks[0][index][1] + ranks[1][index][1]) / 2  # as DistributedDataParallel takes it
        torch.testing.assert_close(mean, head.retina_cls.weight.grad, rtol=1e-4, atol=1e-6)
        if loss == "APLoss":  # mmdetection divides by the mean number of positives, so the mean is that of the batch
            mean = sum(rank[index][0]["loss_bbox"] for rank in ranks) / 2
            assert mean == pytest.approx(losses["loss_bbox"].item(), rel=1e-5)


def test_the_config_of_the_page(tmp_path):
    page = (ROOT / "docs" / "mmdetection.md").read_text()
    (tmp_path / "config.py").write_text(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0])
    model = MODELS.build(Config.fromfile(tmp_path / "config.py").model)
    assert type(model.bbox_head) is RankLossRetinaHead
    assert isinstance(model.bbox_head.criterion, rankloss.RankSortLoss)
    assert model.test_cfg.score_thr == 0

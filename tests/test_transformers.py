"""Hugging Face's detectors with the ranking losses; `make test-transformers` runs this."""

import pytest
import torch

import triton_rankloss as rankloss

pytest.importorskip("transformers", reason="transformers is not installed; make test-transformers has it")
pytest.importorskip("scipy", reason="scipy is not installed; make test-transformers has it")

from transformers import PreTrainedModel, RTDetrModel
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher
from transformers_models import DEFORMABLE, MODELS, RT_DETR, config_of, forward, model_of, no_objects, objects

from triton_rankloss.integrations.transformers import use_loss

ABSOLUTE = (rankloss.IoUBalancedFocalLoss, rankloss.IoUBalancedBCELoss)  # of each score by itself


@pytest.fixture
def model(device) -> PreTrainedModel:
    return model_of("rt_detr").to(device)


@pytest.fixture
def labels(device) -> list[dict]:
    """Two images; the second has no object."""
    return [objects(device), no_objects(device)]


@pytest.mark.parametrize(
    "loss",
    [
        rankloss.APLoss(),
        rankloss.RankSortLoss(),
        rankloss.DRLoss(),
        rankloss.IoUBalancedFocalLoss(),
        rankloss.IoUBalancedBCELoss(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_every_set_of_predictions_is_ranked(model, labels, loss):
    outputs = forward(use_loss(model, loss.to(model.device)), labels)
    kinds = {"loss_ranking", "loss_sorting"} if isinstance(loss, rankloss.RankSortLoss) else {"loss_class"}
    # Two decoder layers; the same, with denoising queries; the encoder, which keeps its own loss with a ranking.
    of_classes = {part + name for part in kinds for name in ("", "_aux_0", "_dn_0", "_dn_1")}
    of_classes |= {"loss_class_aux_1"} if isinstance(loss, ABSOLUTE) else {"loss_vfl_aux_1"}
    sets = ("", "_aux_0", "_aux_1", "_dn_0", "_dn_1")
    of_boxes = {part + name for part in ("loss_bbox", "loss_giou") for name in sets}
    assert set(outputs.loss_dict) == of_classes | of_boxes
    assert outputs.loss.item() == pytest.approx(sum(part.item() for part in outputs.loss_dict.values()), rel=1e-5)
    outputs.loss.backward()
    for head in (*model.model.decoder.class_embed, model.model.enc_score_head):
        assert head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MODELS)
def test_all_but_the_classes_is_the_model_s_own(name):
    model = model_of(name)
    labels = [objects(), no_objects(), objects()]
    before = forward(model, labels)
    after = forward(use_loss(model, rankloss.IoUBalancedFocalLoss()), labels)
    assert len(after.auxiliary_outputs) == len(before.auxiliary_outputs)
    own, of_classes = {}, {}
    for part, value in before.loss_dict.items():
        if part.startswith(("loss_vfl", "loss_ce")):
            of_classes[part.replace("vfl", "class").replace("ce", "class", 1)] = value
        elif not part.startswith("cardinality_error"):  # is no loss
            own[part] = value
    assert set(after.loss_dict) == {*own, *of_classes}
    # The library weighs the parts of some models before it names them, of others after.
    weights = {"loss_bbox": 5, "loss_giou": 2} if name in DEFORMABLE else {}
    for part, value in own.items():
        weight = weights.get(part.rstrip("_0123456789"), 1)
        assert after.loss_dict[part].item() == pytest.approx(weight * value.item(), rel=1e-4, abs=1e-6), part


@pytest.mark.parametrize("name", RT_DETR)
def test_with_a_ranking_the_encoder_is_taught_as_before(name):
    model = model_of(name)
    labels = [objects(), no_objects(), objects()]
    before = forward(model, labels).loss_dict
    after = forward(use_loss(model, rankloss.APLoss()), labels).loss_dict
    for part in ("loss_vfl_aux_1", "loss_bbox_aux_1", "loss_giou_aux_1"):
        assert after[part].item() == pytest.approx(before[part].item(), rel=1e-5)


def test_weight_of_the_classes():
    labels = [objects(), objects()]
    once = forward(use_loss(model_of("rt_detr"), rankloss.APLoss()), labels).loss_dict
    thrice = forward(use_loss(model_of("rt_detr", weight_loss_vfl=3.0), rankloss.APLoss()), labels).loss_dict
    for part, value in once.items():
        factor = 3 if part.startswith(("loss_class", "loss_vfl")) else 1
        assert thrice[part].item() == pytest.approx(factor * value.item(), rel=1e-5)


@pytest.mark.parametrize("loss", [rankloss.APLoss(), rankloss.RankSortLoss()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("name", MODELS)
def test_nothing_depends_on_the_level_that_a_ranking_leaves_open(name, loss):
    model = use_loss(model_of(name), loss)
    labels = [objects(), no_objects(), objects()]
    before = forward(model, labels).loss_dict
    with torch.no_grad():
        heads = [bias for part, bias in model.named_parameters() if "class" in part and part.endswith("bias")]
        for bias in heads:
            bias += 8
    after = forward(model, labels).loss_dict
    assert heads
    for part, value in before.items():
        assert after[part].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5), part


@pytest.mark.parametrize("class_cost", [2.0, 0.0])
def test_the_last_layer_from_its_matches(model, labels, class_cost):
    use_loss(model, rankloss.RankSortLoss())
    # Settings are read at every call, so that a schedule may change them.
    model.config.auxiliary_loss = False
    model.config.matcher_class_cost = class_cost
    outputs = forward(model, labels)
    assert outputs.auxiliary_outputs is None
    # The denoising queries come first.
    logits, boxes = outputs.logits[:, -20:], outputs.pred_boxes[:, -20:]
    # The highest score of an image is taken for 1/2.
    levelled = torch.stack([image - image.max() for image in logits])
    (queries, found), _ = RTDetrHungarianMatcher(model.config)({"logits": levelled, "pred_boxes": boxes}, labels)
    targets = torch.full(logits.shape[:2], 5, device=logits.device)
    iou = torch.zeros(logits.shape[:2], device=logits.device)
    for query, index in zip(queries.tolist(), found.tolist()):
        targets[0, query] = labels[0]["class_labels"][index]
        pair = center_to_corners_format(torch.stack([boxes[0, query], labels[0]["boxes"][index]]))
        iou[0, query] = 1 - rankloss.box_iou_loss(*pair.detach())
    ranking, sorting = rankloss.rank_sort_loss(logits, targets, iou)
    assert outputs.loss_dict["loss_ranking"].item() == pytest.approx(ranking.item(), rel=1e-5)
    assert outputs.loss_dict["loss_sorting"].item() == pytest.approx(sorting.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_without_objects(name):
    model = model_of(name)
    for loss in (rankloss.APLoss(), rankloss.RankSortLoss()):
        outputs = forward(use_loss(model, loss), [no_objects(), no_objects()])
        for part, value in outputs.loss_dict.items():
            # What D-FINE's layers learn from the last one needs no objects, nor does the encoder's own loss.
            assert value.isfinite() if "ddf" in part or "vfl" in part else value == 0
        outputs.loss.backward()


def test_a_module_set_as_loss_function_is_ignored(model, labels):
    """Why `use_loss` sets a function."""
    model.loss_function = rankloss.APLoss()
    assert any("vfl" in name for name in forward(model, labels).loss_dict)


def test_bad_arguments(model):
    for other in (torch.nn.Linear(1, 1), model_of("detr"), RTDetrModel(config_of("rt_detr"))):
        with pytest.raises(
            TypeError, match=rf"model must be one of RTDetrForObjectDetection, .*; got {type(other).__name__}$"
        ):
            use_loss(other, rankloss.APLoss())
    with pytest.raises(TypeError, match=r"loss must be one of APLoss, .*; got ALRPLoss"):
        use_loss(model, rankloss.ALRPLoss())

"""Hugging Face's detectors with the ranking losses; `make test-transformers` runs this."""

import pytest
import torch

import triton_rankloss as rankloss

pytest.importorskip("transformers", reason="transformers is not installed; make test-transformers has it")
pytest.importorskip("scipy", reason="scipy is not installed; make test-transformers has it")

from transformers import PreTrainedModel, RTDetrModel
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher
from transformers_models import DEFORMABLE, MODELS, config_of, forward, model_of, no_objects, objects

from triton_rankloss.integrations.transformers import use_loss


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
    kinds = ["loss_ranking", "loss_sorting"] if isinstance(loss, rankloss.RankSortLoss) else ["loss_class"]
    # Two decoder layers and the encoder; the two layers again, with denoising queries.
    sets = ["", "_aux_0", "_aux_1", "_dn_0", "_dn_1"]
    assert set(outputs.loss_dict) == {part + name for part in (*kinds, "loss_bbox", "loss_giou") for name in sets}
    assert outputs.loss.item() == pytest.approx(sum(part.item() for part in outputs.loss_dict.values()), rel=1e-5)
    outputs.loss.backward()
    for head in (*model.model.decoder.class_embed, model.model.enc_score_head):
        assert head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MODELS)
def test_all_but_the_classes_is_the_model_s_own(name):
    model = model_of(name)
    labels = [objects(), no_objects(), objects()]
    before = forward(model, labels)
    after = forward(use_loss(model, rankloss.APLoss()), labels)
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


def test_weight_of_the_classes():
    labels = [objects(), objects()]
    once = forward(use_loss(model_of("rt_detr"), rankloss.APLoss()), labels).loss_dict
    thrice = forward(use_loss(model_of("rt_detr", weight_loss_vfl=3.0), rankloss.APLoss()), labels).loss_dict
    for part, value in once.items():
        factor = 3 if part.startswith("loss_class") else 1
        assert thrice[part].item() == pytest.approx(factor * value.item(), rel=1e-5)


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
    (queries, found), _ = RTDetrHungarianMatcher(model.config)({"logits": logits, "pred_boxes": boxes}, labels)
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
            # What D-FINE's layers learn from the last one needs no objects.
            assert value.isfinite() if "ddf" in part else value == 0
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

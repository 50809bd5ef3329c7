"""Hugging Face's detectors with the ranking losses; `make test-transformers` runs this."""

import argparse
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import assert_close
from processes import run

import triton_rankloss as rankloss

pytest.importorskip("transformers", reason="transformers is not installed; make test-transformers has it")
pytest.importorskip("scipy", reason="scipy is not installed; make test-transformers has it")

from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DabDetrConfig,
    DabDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrModel,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from triton_rankloss.integrations.transformers import use_loss

RT_DETR = {
    "rt_detr": (RTDetrConfig, RTDetrForObjectDetection),
    "rt_detr_v2": (RTDetrV2Config, RTDetrV2ForObjectDetection),
    "d_fine": (DFineConfig, DFineForObjectDetection),
}
DEFORMABLE = {
    "deformable_detr": (DeformableDetrConfig, DeformableDetrForObjectDetection),
    "conditional_detr": (ConditionalDetrConfig, ConditionalDetrForObjectDetection),
    "dab_detr": (DabDetrConfig, DabDetrForObjectDetection),
}
MODELS = {**RT_DETR, **DEFORMABLE}
OTHERS = {"detr": (DetrConfig, DetrForObjectDetection)}


def backbone() -> RTDetrResNetConfig:
    return RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def config_of(name: str, **options):
    """Two decoder layers, 20 queries, 5 classes."""
    sizes = {"d_model": 32, "decoder_layers": 2, "num_queries": 20, "num_labels": 5}
    sizes |= {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
    sizes |= {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
    options = {"backbone_config": backbone()} | sizes | options
    if name in RT_DETR:
        options |= {"encoder_hidden_dim": 32, "encoder_in_channels": [32, 48, 64], "decoder_in_channels": [32] * 3}
        options = {"num_denoising": 8, "freeze_backbone_batch_norms": False} | options
        return RT_DETR[name][0](**options)
    options |= {"encoder_layers": 1, "auxiliary_loss": True, "dropout": 0.0}
    return {**DEFORMABLE, **OTHERS}[name][0](**options)


def model_of(name: str, **options) -> PreTrainedModel:
    torch.manual_seed(0)
    return {**MODELS, **OTHERS}[name][1](config_of(name, **options)).train()


def objects(device="cpu") -> dict:
    boxes = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.4, 0.3]], device=device)
    return {"class_labels": torch.tensor([1, 3], device=device), "boxes": boxes}


def no_objects(device="cpu") -> dict:
    return {name: values[:0] for name, values in objects(device).items()}


def forward(model: PreTrainedModel, labels: list[dict]):
    """On the same images, with the same noise for the denoising queries, whenever it is called."""
    torch.manual_seed(1)
    return model(pixel_values=torch.rand(len(labels), 3, 96, 96).to(model.device), labels=labels)


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


def test_the_last_layer_from_its_matches(model, labels):
    model.config.auxiliary_loss = False
    outputs = forward(use_loss(model, rankloss.RankSortLoss()), labels)
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
        with pytest.raises(TypeError, match=rf"model must be for object detection, .*; got {type(other).__name__}$"):
            use_loss(other, rankloss.APLoss())
    with pytest.raises(TypeError, match=r"loss must be one of APLoss, .*; got ALRPLoss"):
        use_loss(model, rankloss.ALRPLoss())


def shards(name: str) -> list[list[dict]]:
    """The labels of the images of two ranks, in unequal numbers.

    At least two images: for a batch of one, torch 2.13's batch norm takes the gradients of RT-DETR's for channels-last
    on a CPU, and gives wrong ones.
    """
    elsewhere = {"class_labels": torch.tensor([4]), "boxes": torch.tensor([[0.2, 0.7, 0.2, 0.3]])}
    return {
        "objects": [[objects(), no_objects(), elsewhere], [elsewhere, objects()]],
        "none": [[objects(), no_objects(), elsewhere], [no_objects(), no_objects()]],
    }[name]


def batch_independent(name: str, loss) -> PreTrainedModel:
    """In double precision; without denoising, whose noise depends on the batch, and with fixed batch norms."""
    model = model_of(name, **({"num_denoising": 0} if name in RT_DETR else {})).double()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(pixel_values=images_of("objects"))  # without it small weights make values that are all rounding error
    for norm in norms:
        norm.eval()
    return use_loss(model, loss)


def loss_and_gradients(model: PreTrainedModel, images: torch.Tensor, labels: list[dict]):
    labels = [{"class_labels": image["class_labels"], "boxes": image["boxes"].double()} for image in labels]
    loss = model(pixel_values=images, labels=labels).loss
    loss.backward()
    model = getattr(model, "module", model)
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def images_of(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(sum(map(len, shards(name))), 3, 96, 96, generator=generator, dtype=torch.float64)


def work(rank: int, world_size: int, group) -> dict:
    results = {}
    for name in ("rt_detr", "deformable_detr"):
        for labels in ("objects", "none"):
            model = batch_independent(name, rankloss.RankSortLoss(group=group))
            model = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
            sizes = [len(shard) for shard in shards(labels)]
            own = images_of(labels).split(sizes)[rank], shards(labels)[rank]
            results[name, labels] = loss_and_gradients(model, *own)
    for name in ("rt_detr", "d_fine"):
        model = use_loss(model_of(name), rankloss.APLoss(group=group))
        results[name, "denoising"] = {
            part: value.item() for part, value in forward(model, shards("none")[rank]).loss_dict.items()
        }
    return results


@pytest.fixture(scope="module")
def ranks():
    return run(work, 2)


@pytest.mark.parametrize("labels", ["objects", "none"])
@pytest.mark.parametrize("name", ["rt_detr", "deformable_detr"])
def test_a_group_equals_one_process(ranks, name, labels):
    whole = [image for shard in shards(labels) for image in shard]
    model = batch_independent(name, rankloss.RankSortLoss())
    loss, gradients = loss_and_gradients(model, images_of(labels), whole)
    # The classes' parts are the same on both ranks; of the boxes' the mean is that of the whole batch.
    assert_close(sum(result[name, labels][0] for result in ranks) / 2, loss)
    for result in ranks:
        found = result[name, labels][1]
        assert set(found) == set(gradients)
        for parameter, gradient in gradients.items():
            assert_close(found[parameter], gradient, times=10, atol=1e-13)  # that of a key's bias is 0


@pytest.mark.parametrize("name", ["rt_detr", "d_fine"])
def test_a_rank_without_objects_has_no_denoising_queries(ranks, name):
    alone = forward(use_loss(model_of(name), rankloss.APLoss()), shards("none")[0]).loss_dict
    denoising = [part for part in alone if "_dn_" in part]
    assert denoising
    for part in denoising:
        found = [result[name, "denoising"][part] for result in ranks]
        if part.startswith("loss_class"):
            assert found == pytest.approx([alone[part].item()] * 2, rel=1e-5)
        elif "ddf" not in part:
            assert found == pytest.approx([2 * alone[part].item(), 0], rel=1e-5)


EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    for module in ("accelerate", "faster_coco_eval", "sklearn"):
        pytest.importorskip(module, reason="what the examples need is not installed")
    monkeypatch.syspath_prepend(EXAMPLES)
    return pytest.importorskip("train_transformers")


LAUNCHERS = {
    "python": [],
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"],
    # With its --cpu, accelerate starts one process.
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_example(example, launcher, tmp_path):
    options = ["--cpu", "--epochs", "0.1", "--out", tmp_path]
    done = subprocess.run(
        [sys.executable, *LAUNCHERS[launcher], EXAMPLES / "train_transformers.py", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    (found,) = results["runs"]
    assert (found["model"], found["loss"], found["seed"]) == ("rt_detr", "rank_sort", 0)
    assert "| rt_detr | rank_sort | 0.0" in done.stdout
    assert results["settings"]["processes"] == (1 if launcher == "python" else 2)


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(example, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    def killed(*_):
        def compute(_):
            if next(calls) == 2:
                raise KilledError
            return {}

        return compute

    dataset = example.digit_scenes(8, 96, seed=0)
    dataset.val = dataset.test = dataset.train
    arguments = argparse.Namespace(epochs=2, batch_size=4, learning_rate=1e-3, cpu=True)

    def train(name: str) -> tuple[dict, float]:
        folder = tmp_path / name
        score = example.run("rt_detr", rankloss.RankSortLoss(), dataset, example.options_of(arguments, folder, seed=0))
        return RTDetrForObjectDetection.from_pretrained(folder / "checkpoint-4").state_dict(), score["test_ap"]

    whole, score = train("whole")
    calls = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(example, "coco_metrics", killed)
        with pytest.raises(KilledError):
            train("killed")
    (checkpoint,) = (tmp_path / "killed").iterdir()
    assert checkpoint.name == "checkpoint-2"
    continued, continued_score = train("killed")
    assert continued_score == score
    torch.testing.assert_close(continued, whole)

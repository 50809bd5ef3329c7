"""Hugging Face's detectors in two processes, and the example with `Trainer`; `make test-transformers` runs this."""

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

from transformers import PreTrainedModel, RTDetrForObjectDetection
from transformers_models import RT_DETR, forward, model_of, no_objects, objects

from triton_rankloss.integrations.transformers import use_loss


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
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
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
        timeout=300,  # processes that do not find each other wait for half an hour
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
        return RTDetrForObjectDetection.from_pretrained(folder / "model").state_dict(), score["test_ap"]

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

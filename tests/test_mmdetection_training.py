"""mmdetection's Runner trains the heads with the losses; `make test-mmdetection` runs this where it is installed."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import processes
import pytest
import torch

pytest.importorskip("mmcv", reason="mmcv is not installed; make test-mmdetection has it")
pytest.importorskip("mmdet", reason="mmdet is not installed; make test-mmdetection has it")

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Eight grey images of 64 x 64 pixels for each split, a bright square in all but the first, in COCO format."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        images, annotations = [], []
        for number in range(8):
            pixels = np.full((64, 64, 3), 90, dtype=np.uint8)
            name = f"{split}{number}.png"
            images.append({"id": number, "file_name": name, "width": 64, "height": 64})
            if number:
                x, y, side = generator.integers((2, 2, 20), (24, 24, 36)).tolist()
                pixels[y : y + side, x : x + side] = (250, 200, 40)
                annotations.append(
                    {
                        "id": number,
                        "image_id": number,
                        "category_id": 5,
                        "bbox": [x, y, side, side],
                        "area": side * side,
                        "iscrowd": 0,
                    }
                )
            Image.fromarray(pixels).save(folder / "images" / name)
        categories = [{"id": 5, "name": "square"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def example(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "examples" / "train_mmdetection.py", "--data", folder, "--size", "64", "64"]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


def test_the_example(folder, tmp_path):
    options = ("--epochs", "1", "--model", "retinanet", "atss", "--loss", "alrp", "focal", "--out", str(tmp_path))
    done = example(folder, *options)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "results.json").read_text())
    assert [(run["model"], run["loss"]) for run in written["runs"]] == [
        (model, loss) for model in ("retinanet", "atss") for loss in ("alrp", "focal")
    ]
    assert all(0 <= run["ap"] <= run["ap50"] <= 1 for run in written["runs"])
    assert set(written["versions"]) == {"torch", "mmdet", "mmcv", "mmengine"}
    assert example(folder, *options).stdout.splitlines() == done.stdout.splitlines()[-6:]  # the table, nothing trained


def test_the_example_says_what_is_missing(tmp_path):
    done = example(tmp_path)
    assert done.returncode == 2
    assert "cannot read" in done.stderr.splitlines()[-1]
    assert "instances_train.json" in done.stderr.splitlines()[-1]


class Parts(Hook):
    """The parts of the loss of every step."""

    def __init__(self):
        self.steps: list[dict] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.steps.append({name: float(part) for name, part in outputs.items()})


class KilledError(Exception):
    pass


class Kill(Hook):
    """Ends the training before its second epoch."""

    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            raise KilledError


def config_of(folder: Path, work: Path, model: str, loss: dict) -> Config:
    """The example's, without chance in its images; two epochs of two steps."""
    sys.path.append(str(ROOT / "examples"))
    from train_mmdetection import config

    arguments = Namespace(data=folder, size=(64, 64), batch_size=4, learning_rate=1e-3, epochs=2, out=work)
    settings = config(model, "alrp", 0, arguments)
    settings.model.bbox_head.loss = loss
    settings.custom_hooks = [{"type": "EndEpochHook"}]
    settings.train_dataloader.dataset.pipeline[3].prob = 0.0
    return settings


def test_alrp_is_balanced_after_every_epoch_and_after_a_resume(folder, tmp_path):
    def runner(name: str) -> Runner:
        settings = config_of(folder, tmp_path / name[:5], "retinanet", {"type": "ALRPLoss"})
        return Runner.from_cfg(Config({**settings, "experiment_name": name}))

    whole, parts = runner("whole"), Parts()
    whole.register_hook(parts)
    whole.train()
    assert len(parts.steps) == 4
    weight = 50.0  # the first of the paper, times which loss_bbox comes out
    for steps in (parts.steps[:2], parts.steps[2:]):
        localization = sum(step["loss_bbox"] for step in steps) / weight
        weight = (localization + sum(step["loss_cls"] for step in steps)) / localization
    assert whole.model.bbox_head.criterion.localization_weight.item() == pytest.approx(weight, rel=1e-4)

    killed = runner("parts-1")
    killed.register_hook(Kill())
    with pytest.raises(KilledError):
        killed.train()
    resumed = runner("parts-2")
    resumed.train()
    assert resumed.iter == 4
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def train_in_process(rank: int, world_size: int, group, folder: Path, work: Path) -> dict:
    """The weights after training. mmengine's launchers choose a GPU; a process group that is there it takes."""
    os.environ["LOCAL_RANK"] = str(rank)
    settings = config_of(folder, work, "atss", {"type": "RankSortLoss", "group": "world"})
    wrapper = {"type": "MMDistributedDataParallel", "device_ids": None}
    runner = Runner.from_cfg(Config({**settings, "launcher": "pytorch", "model_wrapper_cfg": wrapper}))
    assert runner.model.module.bbox_head.criterion.group is not None
    return {name: value.detach() for name, value in runner.train().module.named_parameters()}


def test_two_processes_train_one_model(folder, tmp_path):
    first, second = processes.run(partial(train_in_process, folder=folder, work=tmp_path), 2)
    assert "bbox_head.atss_cls.weight" in first
    assert not any("centerness" in name for name in first)  # DistributedDataParallel would wait for its gradient
    assert all(torch.equal(first[name], second[name]) for name in first)

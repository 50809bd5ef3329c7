"""Ultralytics' own training with the losses: interrupted, resumed, in two processes; the example and the page."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import triton_rankloss as rankloss

pytest.importorskip("ultralytics", reason="ultralytics is not installed; make test-ultralytics has it")

import numpy as np
from PIL import Image
from torch import distributed as dist
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import YAML
from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file

from triton_rankloss.integrations.ultralytics import use_loss

EXAMPLES = Path(__file__).parent.parent / "examples"
CLASSES = 3
QUICK = {"epochs": 2, "imgsz": 64, "batch": 4, "device": "cpu", "workers": 0, "plots": False, "amp": False}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A file that describes eight images; the second and the last are without objects, one of them without a file."""
    folder = tmp_path_factory.mktemp("data")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for i in range(8):
            pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(folder / "images" / split / f"{i}.png")
            label = folder / "labels" / split / f"{i}.txt"
            if i != 7:
                label.write_text("" if i == 1 else f"{i % CLASSES} 0.4 0.5 0.5 0.6\n")
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images/train\nval: images/val\nnames: [a, b, c]\n")
    return file


class Counted:
    """AP Loss that knows how often it was called, in training and in validation, and the mean of its first scores."""

    def __init__(self):
        self.training, self.validation, self.level = 0, 0, None

    def __call__(self, scores, targets):
        if torch.is_grad_enabled():
            self.training += 1
        else:
            self.validation += 1
        self.level = scores.mean().item() if self.level is None else self.level
        return rankloss.ap_loss(scores, targets)


def interrupt(trainer):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
def test_training_is_interrupted_and_resumed(name, data, tmp_path):
    heads = 2 if name == "yolo26n" else 1
    model = use_loss(YOLO(f"{name}.yaml"), loss := Counted())
    model.add_callback("on_model_save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.train(data=data, project=tmp_path, name="run", **{**QUICK, "epochs": 3})
    # Eight images are two batches; validation has batches of twice the size.
    assert (loss.training, loss.validation) == (2 * heads, 1 * heads)
    assert loss.level == pytest.approx(math.log(0.1 / 0.9), abs=0.5)  # below -5 where Ultralytics starts

    last = tmp_path / "run" / "weights" / "last.pt"
    model = use_loss(YOLO(last), loss := Counted())
    weights = []
    model.add_callback(
        "on_train_epoch_start", lambda trainer: weights.append(getattr(trainer.model.criterion, "o2m", None))
    )
    model.train(data=data, resume=True)
    assert (loss.training, loss.validation) == (4 * heads, 2 * heads)
    # Ultralytics lets the weight of one-to-many fall from 0.8 to 0.1, here in three epochs of which one was done.
    assert weights == ([pytest.approx(0.45), pytest.approx(0.1)] if heads == 2 else [None, None])

    best = tmp_path / "run" / "weights" / "best.pt"
    assert type(YOLO(best).model) is DetectionModel
    code = f"""
import sys
sys.modules["triton_rankloss"] = None  # to import it is an error
from ultralytics import YOLO
model = YOLO({str(best)!r})
print(model.val(data={str(data)!r}, imgsz=64, plots=False, project={str(tmp_path)!r}).box.map)
print(len(model.predict({str(data.parent / "images" / "val")!r}, imgsz=64, conf=0.001)))
print(model.export(format="torchscript", imgsz=64))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("best.torchscript")


class TrainerOnCPUs(DetectionTrainer):
    """In place of the trainer of several GPUs: two processes on gloo; each writes its last losses and its weights."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.world_size = 2 if "LOCAL_RANK" in os.environ else 0

    def _setup_ddp(self):
        dist.init_process_group("gloo")
        wrapper = torch.nn.parallel.DistributedDataParallel
        # On a CPU it takes no devices.
        torch.nn.parallel.DistributedDataParallel = lambda model, device_ids, **options: wrapper(model, **options)

    def final_eval(self):
        losses = {name: value.item() for name, value in self.loss_items.items()}
        torch.save((losses, self.model.module.state_dict()), self.save_dir.parent / f"rank{dist.get_rank()}.pt")


def of_all_processes(scores, targets):
    # Validation may have fewer batches in one process than in the other.
    group = dist.group.WORLD if torch.is_grad_enabled() else None
    return rankloss.ap_loss(scores, targets, group=group)


@pytest.mark.parametrize("loss", [rankloss.APLoss(), of_all_processes], ids=["own batch", "all batches"])
def test_two_processes(loss, data, tmp_path):
    """Trainer and callbacks travel as Ultralytics sends them to the processes of several GPUs."""
    model = use_loss(YOLO("yolov8n.yaml"), loss)
    kept = []

    def keep(trainer):
        kept.append(trainer)
        raise KeyboardInterrupt

    model.add_callback("on_pretrain_routine_start", keep)
    with pytest.raises(KeyboardInterrupt):
        model.train(trainer=TrainerOnCPUs, data=data, project=tmp_path, name="run", **{**QUICK, "epochs": 1})
    (trainer,) = kept
    trainer.model = trainer.args.model
    trainer.callbacks["on_pretrain_routine_start"].remove(keep)
    file = generate_ddp_file(trainer)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ddp_cleanup(trainer, file)
    assert done.returncode == 0, done.stderr
    (losses, weights), (other_losses, other_weights) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    # Binary cross-entropy of an untrained model is above 3, AP Loss at most 1; both times 0.5.
    assert 0 < losses["cls_loss"] <= 0.5
    assert losses["box_loss"] != other_losses["box_loss"]
    assert (losses["cls_loss"] == other_losses["cls_loss"]) == (loss is of_all_processes)
    trained = [name for name in weights if name.endswith((".weight", ".bias"))]
    assert all(torch.equal(weights[name], other_weights[name]) for name in trained)


def test_weights_of_classes_are_refused(data, tmp_path):
    model = use_loss(YOLO("yolov8n.yaml"), rankloss.APLoss())
    with pytest.raises(ValueError, match="cls_pw must be 0"):
        model.train(data=data, project=tmp_path, name="run", cls_pw=0.5, **QUICK)


def test_the_lines_of_the_page(data, tmp_path):
    page = (EXAMPLES.parent / "docs" / "ultralytics.md").read_text()
    lines = page.split("```python\n")[1].split("```")[0]
    options = f"data={str(data)!r}, project={str(tmp_path)!r}, epochs=1, imgsz=64, batch=4, device='cpu', plots=False"
    assert 'data="coco8.yaml"' in lines
    names: dict = {}
    exec(lines.replace('data="coco8.yaml"', options), names)
    # Two parts, each at most 1, that weigh 3; binary cross-entropy begins above 4.
    assert 0 < names["model"].trainer.tloss["cls_loss"] <= 6


@pytest.fixture(scope="module")
def example():
    for module in ("faster_coco_eval", "sklearn"):
        pytest.importorskip(module, reason="what the examples need is not installed")
    sys.path.append(str(EXAMPLES))
    return pytest.importorskip("train_ultralytics")


def test_the_example_writes_what_ultralytics_reads(example, tmp_path):
    """An image of 40 x 20 pixels with an object that has half its sides, and one without objects."""
    images = torch.arange(2 * 3 * 20 * 40).view(2, 3, 20, 40).to(torch.uint8)
    boxes, labels = [torch.tensor([[0.0, 5, 20, 15]]), torch.zeros(0, 4)], [torch.tensor([1]), torch.zeros(0).long()]
    split = example.Split(images, boxes, labels, [torch.zeros(0, 4)] * 2, torch.ones(2, 2), {})
    categories = [{"id": 7, "name": "round"}, {"id": 9, "name": "square"}]
    file = example.yolo_folder(example.Dataset("shapes", split, split, split, categories, flip=True), tmp_path / "out")
    found = YAML.load(file)
    assert found["names"] == {0: "round", 1: "square"}
    for name in ("train", "val", "test"):
        written = Path(found["path"]) / found[name]
        assert (torch.tensor(np.array(Image.open(written / "000000.png"))).permute(2, 0, 1) == images[0]).all()
        texts = [(tmp_path / "out" / "labels" / name / f"00000{i}.txt").read_text() for i in (0, 1)]
        assert texts == ["1 0.25 0.5 0.5 0.5\n", ""]


def test_the_example_resumes(example, data, tmp_path, monkeypatch):
    def use_and_interrupt(model, loss):
        use_loss(model, loss).add_callback("on_model_save", interrupt)

    run = (data, "ap", tmp_path / "run", "yolov8n.yaml", {"epochs": 2, "imgsz": 64, "batch": 4, "device": "cpu"})
    monkeypatch.setattr(example, "use_loss", use_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        example.train(*run)
    monkeypatch.undo()
    losses = tmp_path / "run" / "results.csv"
    assert len(losses.read_text().splitlines()) == 2  # a header and an epoch
    best = example.train(*run)
    lines = losses.read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "1", "2"]
    column = lines[0].split(",").index("train/cls_loss")
    # AP Loss is at most 1, and weighs 3; binary cross-entropy begins above 4.
    assert all(0 < float(line.split(",")[column]) <= 3 for line in lines[1:])
    assert example.train(*run) == best
    assert losses.read_text().splitlines() == lines
    with pytest.raises(example.InputError, match="run was trained with other settings"):
        example.train(*run[:-1], {**run[-1], "epochs": 3})


def test_the_example(example, tmp_path):
    command = [sys.executable, EXAMPLES / "train_ultralytics.py", "--epochs", "1", "--out", tmp_path / "out"]
    done = subprocess.run([*command, "--loss", "rank_sort"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| yolov8n | rank_sort | 0.")
    (run,) = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert run["seed"] == 0

    command += ["--data", tmp_path / "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(f"error: no such folder: {tmp_path / 'nowhere'}")

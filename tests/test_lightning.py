"""examples/train_lightning.py: `make test-lightning` runs this where Lightning is installed."""

import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import run as run_processes

import triton_rankloss as rankloss

pytest.importorskip("lightning", reason="Lightning is not installed; make test-lightning has it")
pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed; the extra 'examples' brings it")
pytest.importorskip("matplotlib", reason="matplotlib is not installed; the extra 'examples' brings it")
pytest.importorskip("sklearn", reason="scikit-learn is not installed; the extra 'examples' brings it")
sys.path.append(str(Path(__file__).parents[1] / "examples"))

import lightning as L
import train_lightning
from data import Dataset, InputError
from detector import make_anchors
from digits import digit_scenes
from evaluate import Score, coco_score, detect_split, normalize
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DistributedSampler, default_collate
from train_lightning import DetectionData, LitDetector
from training import match

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::FutureWarning:lightning")
IMAGES = 12
SEED = 3
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def first(split, count: int):
    """The first images of a split."""
    images = split.coco["images"][:count]
    annotations = [entry for entry in split.coco["annotations"] if entry["image_id"] < count]
    columns = (column[:count] for column in (split.images, split.boxes, split.labels, split.crowds, split.scales))
    return type(split)(*columns, {**split.coco, "images": images, "annotations": annotations})


def digits(*empty: int) -> Dataset:
    """Odd numbers of images to detect in, which two processes cannot share evenly; `empty` ones without objects."""
    dataset = digit_scenes(IMAGES, 64, SEED)
    dataset.val, dataset.test = first(dataset.val, 5), first(dataset.test, 7)
    for index in empty:
        dataset.train.boxes[index], dataset.train.labels[index] = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    return dataset


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return digits()


def arguments(out: Path, **changes) -> Namespace:
    options = {"epochs": 4, "batch_size": 4, "devices": 1, "accelerator": "cpu", "precision": "32-true", "out": out}
    return Namespace(**options | changes)


def train(dataset: Dataset, out: Path, loss: str = "alrp", **changes) -> tuple[dict, dict]:
    """What `train` says of a run of a few steps, and the state it ends with."""
    result = train_lightning.train(loss, dataset, {"of": "tests"}, SEED, arguments(out, **changes))
    (last,) = out.rglob("last.ckpt")
    return result, torch.load(last)["state_dict"]


def balancing_weights(monkeypatch) -> list[float]:
    """Will hold what aLRP Loss multiplied the boxes by, step by step."""
    weights = []
    forward = rankloss.ALRPLoss.forward

    def observed(self, *inputs, **boxes):
        weights.append(self.localization_weight.item())
        return forward(self, *inputs, **boxes)

    monkeypatch.setattr(rankloss.ALRPLoss, "forward", observed)
    return weights


@pytest.mark.parametrize("saved", ["at the end of the epoch", "after validation"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(dataset, tmp_path, monkeypatch, saved):
    """Lightning ends an epoch after validation; going on from a checkpoint in between, it ends that epoch first."""
    checkpoint = partial(ModelCheckpoint, save_on_train_epoch_end=saved == "at the end of the epoch")
    monkeypatch.setattr(train_lightning, "ModelCheckpoint", checkpoint)
    weights = balancing_weights(monkeypatch)
    expected, state = train(dataset, tmp_path / "whole")
    whole, weights[:] = list(weights), []

    def stop(self, batch, index):
        if (self.current_epoch, index) == (2, 1):
            raise KeyError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(LitDetector, "on_train_batch_start", stop)
        with pytest.raises(KeyError, match="stopped"):
            train(dataset, tmp_path / "stopped")
    del weights[6:]  # the epoch that was not finished
    found, resumed = train(dataset, tmp_path / "stopped")
    assert weights == whole
    assert len(whole) == 12
    assert len(set(whole)) == 4
    assert state.keys() == resumed.keys()
    for name in state:
        assert torch.equal(resumed[name], state[name]), name
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}


def test_the_balancing_weight_is_that_of_the_epoch(dataset, tmp_path, monkeypatch):
    """Section 5 of the aLRP paper, from the parts as they were logged."""
    parts = []
    forward = train_lightning.RECIPES["alrp"].forward
    monkeypatch.setattr(
        train_lightning.RECIPES["alrp"],
        "forward",
        lambda self, matches: parts.append(forward(self, matches)) or parts[-1],
    )
    _, state = train(dataset, tmp_path)
    assert len(parts) == 4 * IMAGES // 4
    weight = 50.0
    for epoch in range(4):
        of_epoch = parts[3 * epoch : 3 * epoch + 3]
        classes = sum(part["class"].item() for part in of_epoch)
        boxes = sum(part["box"].item() for part in of_epoch) / weight
        weight = (classes + boxes) / boxes
    assert state["recipe.loss.localization_weight"].item() == pytest.approx(weight, rel=1e-5)
    assert state["recipe.loss.num_steps"] == 0


def score_of(loss: str, dataset: Dataset, state: dict) -> Score:
    """Of the saved weights, without Lightning."""
    model = LitDetector(loss, dataset, {})
    model.load_state_dict(state)
    detections = detect_split(model.detector, dataset.test, torch.device("cpu"))
    return coco_score(detections, dataset.test, dataset.categories)


@pytest.mark.parametrize("loss", ["ap", "harmonic"])
def test_ap_is_that_of_the_weights_that_were_saved(dataset, tmp_path, loss):
    found, state = train(dataset, tmp_path, loss, epochs=6)
    expected = score_of(loss, dataset, state)
    assert expected.ap50 > 0
    assert (found["ap"], found["ap50"], found["ap75"]) == pytest.approx(expected, rel=1e-6)


class Observed(LitDetector):
    """Keeps the gradients of the first step, as the optimizer gets them, and the values of its loss."""

    def on_before_optimizer_step(self, _):
        gradients = {name: parameter.grad.clone() for name, parameter in self.detector.named_parameters()}
        self.gradients = getattr(self, "gradients", gradients)

    def on_train_batch_end(self, output, *_):
        self.losses = [*getattr(self, "losses", []), output["loss"].item()]


def fit(loss: str, dataset: Dataset, batch_size: int, **options) -> Observed:
    L.seed_everything(SEED)
    model = Observed(loss, dataset, {})
    trainer = L.Trainer(**QUIET, enable_checkpointing=False, num_sanity_val_steps=0, **options)
    trainer.fit(model, DetectionData(dataset, batch_size, SEED))
    return model


def whole_batch(loss: str, dataset: Dataset) -> tuple[LitDetector, dict]:
    """The model after backward of one batch of all images, without Lightning; and the parts of its loss."""
    L.seed_everything(SEED)
    model = LitDetector(loss, dataset, {})
    samples = DetectionData(dataset, IMAGES, SEED).samples
    batch = default_collate([samples[index] for index in range(IMAGES)])
    anchors = torch.cat(make_anchors(*batch.images.shape[-2:]))
    parts = model.recipe(match(*model.detector(normalize(batch.images)), batch, anchors))
    sum(parts.values()).backward()
    return model, parts


# Losses of which every part spans the group; and those whose box part is, as usual in DDP, the mean of each process.
WHOLE, OF_CLASSES = ("alrp", "iou_balanced"), ("ap", "rank_sort", "dr")


def fit_shard(dataset: Dataset, out: Path, rank: int, world_size: int, group) -> tuple[dict, float, tuple[dict, dict]]:
    with pytest.MonkeyPatch.context() as patch:
        # What torchrun and Lightning's own launcher tell a process.
        for name, value in {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world_size}.items():
            patch.setenv(name, str(value))
        options = {"devices": world_size, "strategy": "ddp", "max_epochs": 1}
        models = {loss: fit(loss, dataset, IMAGES, **options) for loss in (*WHOLE, *OF_CLASSES)}
        trained = train(dataset, out, "rank_sort", devices=world_size)
    gradients = {loss: model.gradients for loss, model in models.items()}
    return gradients, models["alrp"].recipe.loss.localization_weight.item(), trained


@pytest.fixture(scope="module")
def half_empty() -> Dataset:
    """What comes to the second of two processes has no objects."""
    return digits(*DistributedSampler(range(IMAGES), 2, 1, shuffle=True, seed=SEED))


@pytest.fixture(scope="module")
def shards(half_empty, tmp_path_factory) -> list:
    """What each of two processes has after a step on its half of the images."""
    return run_processes(partial(fit_shard, half_empty, tmp_path_factory.mktemp("shards")), 2)


@pytest.mark.parametrize("loss", [*WHOLE, *OF_CLASSES])
def test_two_processes_have_the_gradients_of_one(half_empty, shards, loss):
    model, _ = whole_batch(loss, half_empty)
    compared = [name for name, _ in model.detector.named_parameters() if loss in WHOLE or name.startswith("class_")]
    assert len(compared) >= 5
    for gradients, _, _ in shards:
        for name in compared:
            expected = model.detector.get_parameter(name).grad
            torch.testing.assert_close(gradients[loss][name], expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_two_processes_balance_as_one(half_empty, shards):
    _, parts = whole_batch("alrp", half_empty)
    boxes = parts["box"].item() / 50
    for _, weight, _ in shards:
        assert weight == pytest.approx((parts["class"].item() + boxes) / boxes, rel=1e-4)


def test_two_processes_measure_the_ap_of_one(half_empty, shards):
    for _, _, (found, state) in shards:
        assert found["model"] == "detector, 2 processes"
        assert (found["ap"], found["ap50"], found["ap75"]) == pytest.approx(
            score_of("rank_sort", half_empty, state), rel=1e-6
        )


# Lightning takes bfloat16 in place of float16 on a CPU; the plugin, given by itself, does what it says, scaler and all.
HALF = {
    torch.bfloat16: {"precision": "bf16-mixed"},
    torch.float16: {"plugins": MixedPrecision("16-mixed", device="cpu")},
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("loss", train_lightning.RECIPES)
def test_half_precision(dataset, monkeypatch, loss, dtype):
    """The losses get logits of half precision, and give gradients as near to those of float32 as these can be."""
    seen = set()
    monkeypatch.setattr(train_lightning, "match", lambda *inputs: seen.add(inputs[0].dtype) or match(*inputs))
    found = fit(loss, dataset, IMAGES, max_epochs=3, **HALF[dtype])
    assert seen == {dtype}
    assert torch.tensor(found.losses).isfinite().all()
    assert all(parameter.isfinite().all() for parameter in found.parameters())
    # Its inputs are rounded to the dtype, and so are the gradients of the logits.
    expected = whole_batch(loss, dataset)[0].detector.class_output.weight.grad
    error = (found.gradients["class_output.weight"] - expected).norm() / expected.norm()
    assert error < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("loss", train_lightning.RECIPES)
def test_no_objects_at_all(loss):
    found = fit(loss, digits(*range(IMAGES)), IMAGES // 2, max_epochs=2)
    assert len(found.losses) == 4
    assert torch.tensor(found.losses).isfinite().all()
    assert all(parameter.isfinite().all() for parameter in found.parameters())
    if loss == "alrp":
        assert found.recipe.loss.localization_weight == 50


def test_another_run_is_not_continued(dataset, tmp_path):
    train(dataset, tmp_path, epochs=1)
    with pytest.raises(InputError, match="other settings"):
        train_lightning.train("alrp", dataset, {"of": "others"}, SEED, arguments(tmp_path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--batch-size", "9", "--devices", "2"], "--batch-size 9 is not a multiple of --devices 2"),
        (["--devices", "0"], "must be at least 1"),
        (["--data", "no/such/folder"], "no such folder: no/such/folder"),
        (["--loss", "hinge"], "invalid choice: 'hinge'"),
    ],
)
def test_refuses_bad_arguments(tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.setattr(sys, "argv", ["train_lightning.py", *given, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit_:
        train_lightning.main()
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

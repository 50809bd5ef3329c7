"""Train the example detector with Lightning's Trainer, on one process or several, with any of the losses.

    python examples/train_lightning.py --loss rank_sort                      # a few epochs of digits
    python examples/train_lightning.py --loss all --data FOLDER --seed 0 1   # a COCO-format folder
    python examples/train_lightning.py --loss alrp --data FOLDER --devices 2 --precision bf16-mixed

FOLDER holds images/ and instances_{train,val,test}.json. AP is measured on the validation split after every epoch and
on the test split at the end. OUT receives results.json, and for each run a folder of checkpoints and metrics. A command
that was stopped goes on when it is given again: from the last epoch that was complete.
"""

import argparse
from pathlib import Path

import lightning as L
import torch
from data import Batch, Dataset, InputError, TrainingSet, coco_folder
from detector import Detections, Detector, detect, make_anchors
from digits import digit_scenes
from evaluate import BATCH_SIZE, coco_score, normalize
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from recipes import RECIPES
from results import Results, table
from torch import Tensor, distributed
from torch.utils.data import DataLoader, DistributedSampler
from train_detector import SCENE_SIZE, Parser, multiple_of_32, positive_integer
from training import learning_rate_factor, match


class Samples(torch.utils.data.Dataset):
    """Each training image in each of its orientations: what is random in an epoch is the order alone."""

    def __init__(self, training_set: TrainingSet):
        self.set = training_set

    def __len__(self) -> int:
        return self.set.labels.shape[:2].numel()

    def __getitem__(self, index: int) -> Batch:
        mirror, index = divmod(index, len(self.set.images))
        image = self.set.images[index]
        return Batch(image.flip(-1) if mirror else image, self.set.labels[mirror, index], self.set.boxes[mirror, index])


class DetectionData(L.LightningDataModule):
    """Batches of `batch_size` images over all processes together."""

    def __init__(self, dataset: Dataset, batch_size: int, seed: int):
        super().__init__()
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.samples = Samples(TrainingSet(dataset, torch.device("cpu")))

    def train_dataloader(self) -> DataLoader:
        """Of one process; with one alone too, the order follows from seed and epoch, so that it survives a restart."""
        processes, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(self.samples, processes, rank, shuffle=True, seed=self.seed)
        return DataLoader(self.samples, self.batch_size // processes, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        """Images and their indices; Lightning deals them out to the processes."""
        return DataLoader(list(enumerate(self.dataset.val.images)), BATCH_SIZE)

    def test_dataloader(self) -> DataLoader:
        """As for validation."""
        return DataLoader(list(enumerate(self.dataset.test.images)), BATCH_SIZE)


class LitDetector(L.LightningModule):
    """The detector and the recipe of its loss, whose balancing weights are saved with the parameters."""

    def __init__(self, loss: str, dataset: Dataset, settings: dict):
        super().__init__()
        self.recipe = RECIPES[loss]()
        self.detector = Detector(len(dataset.categories), self.recipe.prior)
        self.dataset, self.settings = dataset, settings
        self.register_buffer("anchors", torch.cat(make_anchors(*dataset.train.images.shape[-2:])), persistent=False)
        self.found = {}

    def on_fit_start(self) -> None:
        """With several processes: rank across all."""
        if self.trainer.world_size > 1:
            self.recipe.span(distributed.group.WORLD)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Sum of the parts."""
        logits, deltas = self.detector(normalize(batch.images))
        # Logits may be of half precision; pixels need more.
        parts = self.recipe(match(logits, deltas.float(), batch, self.anchors))
        self.log_dict(parts, prog_bar=True, batch_size=len(batch.images))
        return sum(parts.values())

    def on_train_epoch_end(self) -> None:
        """Let aLRP Loss balance its parts."""
        self.recipe.end_epoch()

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """Keep what is found in each image."""
        index, images = batch
        logits, deltas = self.detector(normalize(images))
        detections = detect(logits.float(), deltas.float(), self.anchors, tuple(images.shape[-2:]))
        for i, found in zip(index.tolist(), detections, strict=True):
            self.found[i] = Detections(*(column.cpu() for column in found))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """AP of the validation split."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """AP of the test split."""
        self._score("test")

    def _score(self, name: str) -> None:
        parts = [None] * self.trainer.world_size
        if len(parts) > 1:
            distributed.all_gather_object(parts, self.found)
        else:
            parts = [self.found]
        # By index: the sampler gives some images to two processes, so that all have equally many.
        found = {index: detections for part in parts for index, detections in part.items()}
        self.found = {}
        split = getattr(self.dataset, name)
        score = coco_score([found[index] for index in sorted(found)], split, self.dataset.categories)
        # The same in every process.
        self.log_dict({f"{name}_{key}": value for key, value in score._asdict().items()}, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> dict:
        """AdamW; the learning rate rises and falls once."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.recipe.learning_rate, weight_decay=0.01)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Say how this run was meant to go."""
        checkpoint["settings"] = self.settings

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Refuse to go on with another one."""
        if checkpoint["settings"] != self.settings:
            raise InputError("a checkpoint here was made with other settings: remove it or choose another folder")


def train(loss: str, dataset: Dataset, settings: dict, seed: int, arguments: argparse.Namespace) -> dict:
    """One run, as results.json has it."""
    L.seed_everything(seed)
    model = LitDetector(loss, dataset, settings)
    data = DetectionData(dataset, arguments.batch_size, seed)
    folder = arguments.out / model_name(arguments) / f"{loss}-seed{seed}"
    timer = Timer()
    # With a `monitor`, last.ckpt would be that of the last epoch that was among the best.
    checkpoints = ModelCheckpoint(folder / "checkpoints", save_last=True)
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        accelerator=arguments.accelerator,
        devices=arguments.devices,
        strategy="ddp" if arguments.devices > 1 else "auto",
        precision=arguments.precision,
        gradient_clip_val=10.0,
        num_sanity_val_steps=0,  # AP needs the whole split
        callbacks=[timer, checkpoints],
        logger=CSVLogger(folder, name="metrics"),
        log_every_n_steps=10,
    )
    trainer.fit(model, data, ckpt_path="last")
    (score,) = trainer.test(model, data, verbose=False)
    score = {name.removeprefix("test_"): value for name, value in score.items()}
    return {"model": model_name(arguments), "loss": loss, "seed": seed, **score, "seconds": timer.time_elapsed("train")}


def model_name(arguments: argparse.Namespace) -> str:
    """The detector, and what is not the default of how it was trained."""
    processes = [f"{arguments.devices} processes"] if arguments.devices > 1 else []
    precision = [arguments.precision] if arguments.precision != "32-true" else []
    return ", ".join(["detector", *processes, *precision])


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=[*RECIPES, "all"], nargs="+", default=["all"])
    parser.add_argument("--data", type=Path, help="COCO-format folder (default: scenes of handwritten digits)")
    parser.add_argument(
        "--size", type=multiple_of_32, nargs=2, metavar=("W", "H"), default=(256, 192), help="of images"
    )
    parser.add_argument("--epochs", type=positive_integer, default=10, help="of all images in both orientations")
    parser.add_argument("--batch-size", type=positive_integer, default=8, help="of all processes together")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--devices", type=positive_integer, default=1, help="processes")
    parser.add_argument("--accelerator", choices=["auto", "cpu", "gpu"], default="auto")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed", "16-mixed"], default="32-true")
    parser.add_argument("--out", type=Path, default=Path("out/lightning"))
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Every loss with every seed that results.json does not hold yet."""
    if arguments.batch_size % arguments.devices:
        raise InputError(f"--batch-size {arguments.batch_size} is not a multiple of --devices {arguments.devices}")
    dataset = coco_folder(arguments.data, *arguments.size) if arguments.data else digit_scenes(448, SCENE_SIZE, seed=0)
    settings = {
        "data": dataset.name,
        "size": list(dataset.train.images.shape[:1:-1]),
        "epochs": arguments.epochs,
        "batch_size": arguments.batch_size,
    }
    results = Results(arguments.out, ("lightning",), settings)
    losses = RECIPES if "all" in arguments.loss else dict.fromkeys(arguments.loss)
    for seed in dict.fromkeys(arguments.seed):
        for loss in losses:
            if not results.has(model_name(arguments), loss, seed):
                rank_zero_only(results.add)(train(loss, dataset, settings, seed, arguments))
    rank_zero_only(print)(table(results.runs))


def main() -> None:
    """Run from the command line."""
    parser = make_parser()
    try:
        run(parser.parse_args())
    except (InputError, MisconfigurationException) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

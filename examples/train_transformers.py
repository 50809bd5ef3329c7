"""Train Hugging Face's RT-DETR or RT-DETRv2, small and made from a config, with `Trainer` and any of the losses.

    python examples/train_transformers.py --loss rank_sort            # a few steps on scenes of digits
    python examples/train_transformers.py --data FOLDER --loss all --out out/transformers --epochs 60
    accelerate launch --multi_gpu --num_processes 2 examples/train_transformers.py --data FOLDER --epochs 60

FOLDER holds images/ and instances_{train,val,test}.json in COCO format. Nothing is downloaded: weights start random.
Runs go to results.json in --out; a command that was killed goes on from the last checkpoint of its run. In several
processes a batch is ranked as a whole.
"""

import argparse
import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from data import Dataset, InputError, Split, coco_folder
from detector import Detections
from digits import digit_scenes
from evaluate import coco_score
from results import KEYS, Results, table
from torch import Tensor, nn
from train_detector import positive_integer
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import triton_rankloss as rankloss
from triton_rankloss.integrations.transformers import use_loss

MODELS = {
    "rt_detr": (RTDetrConfig, RTDetrForObjectDetection),
    "rt_detr_v2": (RTDetrV2Config, RTDetrV2ForObjectDetection),
}
LOSSES = {
    "varifocal": None,  # the models' own
    "ap": rankloss.APLoss,
    "rank_sort": rankloss.RankSortLoss,
    "dr": rankloss.DRLoss,
    "iou_balanced": rankloss.IoUBalancedFocalLoss,
}
RANKING = (rankloss.APLoss, rankloss.RankSortLoss, rankloss.DRLoss)


def small_model(name: str, categories: list[dict]) -> PreTrainedModel:
    """Four of ResNet-18's blocks and a detector of a quarter of the usual width, with random weights."""
    make_config, make_model = MODELS[name]
    backbone = RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 48, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = make_config(
        backbone_config=backbone,
        freeze_backbone_batch_norms=False,  # nothing was pretrained
        encoder_in_channels=[48, 96, 128],
        encoder_hidden_dim=64,
        hidden_expansion=0.5,
        encoder_ffn_dim=128,
        encoder_attention_heads=4,
        d_model=64,
        decoder_in_channels=[64, 64, 64],
        decoder_ffn_dim=128,
        decoder_attention_heads=4,
        decoder_layers=2,
        num_queries=60,
        num_denoising=30,
        id2label={label: category["name"] for label, category in enumerate(categories)},
    )
    return make_model(config)


class Images(torch.utils.data.Dataset):
    """A split as the models take it: images in 0..1, boxes as centre and size in fractions of the image."""

    def __init__(self, split: Split, flip: bool = False):
        self.split = split
        self.flip = flip

    def __len__(self) -> int:
        return len(self.split.images)

    def __getitem__(self, index: int) -> dict:
        """An image, mirrored half of the time if `flip`, and its objects."""
        image = self.split.images[index] / 255
        height, width = image.shape[-2:]
        boxes = self.split.boxes[index] / torch.tensor([width, height, width, height])
        boxes = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), dim=1)
        if self.flip and torch.rand(()) < 0.5:
            image = image.flip(-1)
            boxes = torch.cat((1 - boxes[:, :1], boxes[:, 1:]), dim=1)
        labels = {"class_labels": self.split.labels[index], "boxes": boxes, "index": torch.tensor(index)}
        return {"pixel_values": image, "labels": labels}


def collate(items: list[dict]) -> dict:
    """A batch: one tensor of images, a list of labels."""
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": [item["labels"] for item in items],
    }


class DetectionTrainer(Trainer):
    """`Trainer`, whose evaluation gathers tensors alone: of the objects of an image there are unequally many."""

    def prediction_step(
        self, model: PreTrainedModel, inputs: dict, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """Loss, logits and boxes, and which images they are of."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        indices = torch.stack([labels["index"] for labels in inputs["labels"]])
        return outputs.loss, (outputs.logits, outputs.pred_boxes), indices


def coco_metrics(split: Split, categories: list[dict]) -> Callable[[EvalPrediction], dict[str, float]]:
    """For `compute_metrics`: COCO AP on `split`."""
    processor = RTDetrImageProcessorPil()
    height, width = split.images.shape[-2:]

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        order = torch.as_tensor(prediction.label_ids).argsort()
        logits, boxes = (torch.as_tensor(values)[order] for values in prediction.predictions)
        outputs = SimpleNamespace(logits=logits, pred_boxes=boxes)
        # A ranking loss fixes the order of the scores, not their level: a threshold would drop any of them.
        found = processor.post_process_object_detection(outputs, 0.0, [(height, width)] * len(order))
        detections = [Detections(image["boxes"], image["scores"], image["labels"]) for image in found]
        return coco_score(detections, split, categories)._asdict()

    return compute


def options_of(arguments: argparse.Namespace, folder: Path, seed: int) -> TrainingArguments:
    """How to train; in several processes, this also connects them."""
    return TrainingArguments(
        str(folder),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=arguments.batch_size,
        per_device_eval_batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        weight_decay=1e-4,
        warmup_steps=0.1,  # of all steps, as the ratios below
        lr_scheduler_type="cosine",
        max_grad_norm=0.1,
        eval_strategy="steps",
        eval_steps=0.25,
        save_steps=0.25,
        save_total_limit=1,
        logging_steps=0.05,
        seed=seed,
        use_cpu=arguments.cpu,
        dataloader_pin_memory=torch.accelerator.is_available(),
        remove_unused_columns=False,
        report_to="none",
    )


def run(name: str, loss: nn.Module | None, dataset: Dataset, options: TrainingArguments) -> dict[str, float]:
    """Train, from the last checkpoint in the folder of the run if there is one, and save; AP on the test split."""
    folder = Path(options.output_dir)
    checkpoint = get_last_checkpoint(folder) if folder.is_dir() else None
    set_seed(options.seed)
    model = small_model(name, dataset.categories)
    if checkpoint:
        # `Trainer` finds only part of the weights: they are saved under names that not all layers have in memory.
        model = model.from_pretrained(checkpoint)
    if loss is not None:
        use_loss(model, loss)
    if isinstance(loss, RANKING):
        # Scores that a ranking has set apart would outweigh the boxes: docs/transformers.md.
        model.config.matcher_class_cost = 0.5
    trainer = DetectionTrainer(
        model,
        options,
        data_collator=collate,
        train_dataset=Images(dataset.train, dataset.flip),
        eval_dataset=Images(dataset.val),
        compute_metrics=coco_metrics(dataset.val, dataset.categories),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(folder / "model")
    if options.process_index == 0:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    trainer.compute_metrics = coco_metrics(dataset.test, dataset.categories)
    return trainer.evaluate(Images(dataset.test), metric_key_prefix="test")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["rt_detr"])
    parser.add_argument("--loss", nargs="+", choices=(*LOSSES, "all"), default=["rank_sort"])
    parser.add_argument("--data", type=Path, help="COCO-format folder (default: scenes of handwritten digits)")
    parser.add_argument("--scenes", type=positive_integer, default=128, help="number of digit scenes to train on")
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(256, 192), help="of its images")
    parser.add_argument("--out", type=Path, default=Path("out/transformers"), help="for results.json and checkpoints")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch-size", type=int, default=8, help="of each process")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    arguments = parser.parse_args()
    losses = list(LOSSES) if "all" in arguments.loss else arguments.loss
    if any(side % 32 for side in arguments.size):
        parser.error(f"--size must be multiples of 32: {' x '.join(map(str, arguments.size))}")
    try:
        if arguments.data:
            dataset = coco_folder(arguments.data, *arguments.size)
        else:
            dataset = digit_scenes(arguments.scenes, 128, seed=0)
        settings = {"data": dataset.name, "size": list(dataset.train.images.shape[:1:-1])}
        settings |= {} if arguments.data else {"scenes": arguments.scenes}
        settings |= {name: vars(arguments)[name] for name in ("epochs", "batch_size", "learning_rate")}
        settings["processes"] = options_of(arguments, arguments.out, 0).world_size
        results = Results(arguments.out, ("transformers", "accelerate"), settings)
    except InputError as error:
        parser.error(str(error))
    for name, loss, seed in itertools.product(arguments.model, losses, arguments.seed):
        if results.has(name, loss, seed):
            continue
        options = options_of(arguments, arguments.out / f"{name}-{loss}-{seed}", seed)
        group = torch.distributed.group.WORLD if options.world_size > 1 else None
        start = time.perf_counter()
        found = run(name, LOSSES[loss] and LOSSES[loss](group=group), dataset, options)
        scores = {key: found[f"test_{key}"] for key in KEYS}
        if options.process_index == 0:
            seconds = round(time.perf_counter() - start)
            results.add({"model": name, "loss": loss, "seed": seed, **scores, "seconds": seconds})
    print(table(results.runs))


if __name__ == "__main__":
    main()

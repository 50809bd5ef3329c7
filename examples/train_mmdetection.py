"""Train mmdetection 3's RetinaNet and ATSS, small and without pretrained weights, with its own loss or another.

    python examples/train_mmdetection.py --data FOLDER --loss rank_sort focal --model retinanet --seed 0
    python examples/train_mmdetection.py --data FOLDER --loss all --model all --out out/mmdetection

FOLDER holds images/ and instances_{train,val,test}.json, in COCO format. mmengine's Runner trains, and mmdetection's
CocoMetric measures AP on the test split. What was done is kept in out/mmdetection and not done again; a run that was
killed is resumed from its last epoch. docs/mmdetection.md says how to install mmdetection.
"""

import argparse
from pathlib import Path

import torch
from data import InputError, read_json
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.runner import CheckpointLoader, Runner
from results import Results, table

import triton_rankloss.integrations.mmdetection  # noqa: F401 - registers heads, losses and hook

CONFIGS = {"retinanet": "retinanet/retinanet_r50_fpn_1x_coco.py", "atss": "atss/atss_r50_fpn_1x_coco.py"}
HEADS = {"retinanet": "RankLossRetinaHead", "atss": "RankLossATSSHead"}
# mmdetection's RetinaNet has deviations of 1, for its L1 loss on the deltas.
CODER = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0, 0.0, 0.0, 0.0], "target_stds": [0.1, 0.1, 0.2, 0.2]}
# What each changes in the head; the boxes of AP Loss keep the loss of the config. aLRP Loss balances its boxes after
# "epochs" of 10 steps: real ones, of 52 steps, are too few in so short a training.
LOSSES: dict[str, dict] = {
    "focal": {},
    "ap": {"loss": {"type": "APLoss"}},
    "alrp": {"loss": {"type": "ALRPLoss", "steps_per_epoch": 10}, "bbox_coder": CODER},
    "rank_sort": {"loss": {"type": "RankSortLoss"}},
}
# Trained from nothing on small images: nothing is frozen, and the smallest anchors have 16 (RetinaNet) or 24 pixels.
SMALL = {
    "data_preprocessor": {"pad_size_divisor": 64},
    "backbone": {"depth": 18, "base_channels": 16, "frozen_stages": -1, "norm_eval": False, "init_cfg": None},
    "neck": {"in_channels": [16, 32, 64, 128], "out_channels": 64, "num_outs": 4},
    "bbox_head": {"in_channels": 64, "feat_channels": 64, "stacked_convs": 2},
    # A ranking loss fixes the order of the scores, not their level: a threshold would drop any of them.
    "test_cfg": {"score_thr": 0.0},
}
ANCHOR_SCALES = {"retinanet": 2, "atss": 3}


def detector(model: str, loss: str, num_classes: int) -> dict:
    """What is changed in the model of mmdetection's config."""
    anchors = {"octave_base_scale": ANCHOR_SCALES[model], "strides": [8, 16, 32, 64]}
    head = {**SMALL["bbox_head"], **LOSSES[loss], "num_classes": num_classes, "anchor_generator": anchors}
    if LOSSES[loss]:
        head["type"] = HEADS[model]
    return {**SMALL, "bbox_head": head}


def config(model: str, loss: str, seed: int, arguments: argparse.Namespace) -> Config:
    """mmdetection's own config of RetinaNet or ATSS with R-50, made small, on the user's data."""
    categories = read_json(arguments.data / "instances_train.json")["categories"]
    classes = tuple(category["name"] for category in categories)
    name = f"{model}-{loss}-{seed}"
    config = get_config(f"mmdet::{CONFIGS[model]}")
    config.merge_from_dict({"model": detector(model, loss, len(classes))})
    for split, loader, resize in (("train", config.train_dataloader, 2), ("test", config.test_dataloader, 1)):
        loader.update(batch_size=arguments.batch_size, num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=str(arguments.data), ann_file=f"instances_{split}.json")
        loader.dataset.update(data_prefix={"img": "images/"}, metainfo={"classes": classes})
        loader.dataset.pipeline[resize].scale = tuple(arguments.size)
    config.test_evaluator.ann_file = str(arguments.data / "instances_test.json")
    config.val_dataloader = config.val_evaluator = config.val_cfg = None
    config.train_cfg = {"type": "EpochBasedTrainLoop", "max_epochs": arguments.epochs}
    config.optim_wrapper = {
        "type": "OptimWrapper",
        "optimizer": {"type": "AdamW", "lr": arguments.learning_rate, "weight_decay": 0.01},
        "clip_grad": {"max_norm": 10.0},
    }
    config.param_scheduler = [
        {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": 50},
        {"type": "CosineAnnealingLR", "T_max": arguments.epochs, "convert_to_iter_based": True},
    ]
    config.default_hooks.checkpoint.max_keep_ckpts = 1
    config.default_hooks.logger.interval = 10
    config.update(experiment_name=name, work_dir=str(arguments.out / name), resume=True, randomness={"seed": seed})
    return config


@CheckpointLoader.register_scheme(prefixes="", force=True)
def load_own_checkpoint(filename: str, map_location: str | None) -> dict:
    """A checkpoint of mmengine holds more than weights, which torch.load refuses since 2.6 unless it is told to."""
    return torch.load(filename, map_location=map_location, weights_only=False)


def train_and_test(model: str, loss: str, seed: int, arguments: argparse.Namespace) -> dict:
    """One run, as results.json keeps it."""
    runner = Runner.from_cfg(config(model, loss, seed, arguments))
    runner.train()
    metrics = runner.test()
    return {
        "model": model,
        "loss": loss,
        "seed": seed,
        "ap": metrics["coco/bbox_mAP"],
        "ap50": metrics["coco/bbox_mAP_50"],
        "ap75": metrics["coco/bbox_mAP_75"],
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO-format folder")
    parser.add_argument("--model", nargs="+", choices=[*CONFIGS, "all"], default=["retinanet"])
    parser.add_argument("--loss", nargs="+", choices=[*LOSSES, "all"], default=["rank_sort"])
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(256, 192), help="of its images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, default=Path("out/mmdetection"))
    arguments = parser.parse_args()
    models = list(CONFIGS) if "all" in arguments.model else arguments.model
    losses = list(LOSSES) if "all" in arguments.loss else arguments.loss
    names = ("epochs", "batch_size", "learning_rate")
    settings = {"data": arguments.data.resolve().name, "size": list(arguments.size)}
    settings |= {name: getattr(arguments, name) for name in names}
    try:
        results = Results(arguments.out, ("mmdet", "mmcv", "mmengine"), settings)
        for seed in arguments.seed:
            for model in models:
                for loss in losses:
                    if not results.has(model, loss, seed):
                        results.add(train_and_test(model, loss, seed, arguments))
    except InputError as error:
        parser.error(str(error))
    print(table(results.runs))


if __name__ == "__main__":
    main()

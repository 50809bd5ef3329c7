"""Train mmdetection 3's RetinaNet and ATSS, small and without pretrained weights, with its own loss and with ours.

    python examples/train_mmdetection.py --data FOLDER --loss rank_sort focal --model retinanet --seed 0
    python examples/train_mmdetection.py --data FOLDER --loss all --model all --out out/mmdetection

FOLDER holds images/ and instances_{train,val,test}.json, in COCO format. mmengine's Runner trains, and mmdetection's
CocoMetric measures AP on the test split. Whatever was done is kept in out/mmdetection and not done again; a run that was
killed is resumed from its last epoch. docs/mmdetection.md says how to install mmdetection.
"""

import argparse
import time
from pathlib import Path

import torch
from data import InputError, read_json
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner
from results import Results, table

import triton_rankloss.integrations.mmdetection  # noqa: F401 - registers heads, losses and hook

# `loss` of the head, and what else a loss changes in it; the boxes of AP Loss are those of the model.
LOSSES: dict[str, dict | None] = {
    "focal": None,
    "ap": {"loss": {"type": "APLoss"}},
    "alrp": {"loss": {"type": "ALRPLoss"}},
    "rank_sort": {"loss": {"type": "RankSortLoss"}},
}
STRIDES = [8, 16, 32, 64]


def retina_head(loss: str) -> dict:
    """RetinaHead as in mmdetection's configs, but for its width and smaller anchors."""
    return {
        "type": "RankLossRetinaHead" if LOSSES[loss] else "RetinaHead",
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 2,
            "scales_per_octave": 3,
            "ratios": [0.5, 1.0, 2.0],
            "strides": STRIDES,
        },
        "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        **(LOSSES[loss] or {}),
    }


def atss_head(loss: str) -> dict:
    """ATSSHead as in mmdetection's configs, but for its width and smaller anchors."""
    return {
        "type": "RankLossATSSHead" if LOSSES[loss] else "ATSSHead",
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 3,
            "scales_per_octave": 1,
            "ratios": [1.0],
            "strides": STRIDES,
        },
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]},
        "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
        "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        **(LOSSES[loss] or {}),
    }


MODELS = {
    "retinanet": (
        "RetinaNet",
        retina_head,
        {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0},
    ),
    "atss": ("ATSS", atss_head, {"type": "ATSSAssigner", "topk": 9}),
}


def detector(model: str, loss: str, num_classes: int) -> dict:
    """ResNet-18 of a quarter of its width, a pyramid of strides 8 to 64."""
    kind, head, assigner = MODELS[model]
    return {
        "type": kind,
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": [123.675, 116.28, 103.53],
            "std": [58.395, 57.12, 57.375],
            "bgr_to_rgb": True,
            "pad_size_divisor": 64,
        },
        # Without pretrained weights nothing is frozen.
        "backbone": {"type": "ResNet", "depth": 18, "base_channels": 16, "frozen_stages": -1, "norm_eval": False},
        "neck": {
            "type": "FPN",
            "in_channels": [16, 32, 64, 128],
            "start_level": 1,
            "out_channels": 64,
            "add_extra_convs": "on_output",
            "num_outs": len(STRIDES),
        },
        "bbox_head": {
            "num_classes": num_classes,
            "in_channels": 64,
            "feat_channels": 64,
            "stacked_convs": 2,
            **head(loss),
        },
        "train_cfg": {"assigner": assigner, "allowed_border": -1, "pos_weight": -1, "debug": False},
        # A ranking loss fixes the order of the scores, not their level: a threshold would drop any of them.
        "test_cfg": {
            "nms_pre": 1000,
            "min_bbox_size": 0,
            "score_thr": 0.0,
            "nms": {"type": "nms", "iou_threshold": 0.6},
            "max_per_img": 100,
        },
    }


def loader(split: str, classes: tuple[str, ...], arguments: argparse.Namespace) -> dict:
    """Images of one split, in a size that keeps their aspect; in training mirrored half of the time."""
    train = split == "train"
    meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": tuple(arguments.size), "keep_ratio": True},
        {"type": "LoadAnnotations", "with_bbox": True},
        {"type": "RandomFlip", "prob": 0.5 if train else 0.0},
        {"type": "PackDetInputs", "meta_keys": meta},
    ]
    if train:
        pipeline[1], pipeline[2] = pipeline[2], pipeline[1]  # boxes are resized with their image
    dataset = {
        "type": "CocoDataset",
        "data_root": str(arguments.data),
        "ann_file": f"instances_{split}.json",
        "data_prefix": {"img": "images/"},
        "metainfo": {"classes": classes},
        "pipeline": pipeline,
        "test_mode": not train,
    }
    return {
        "batch_size": arguments.batch_size,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": train},
        "dataset": dataset,
    }


def config(model: str, loss: str, seed: int, arguments: argparse.Namespace) -> Config:
    """What mmdetection's tools/train.py reads from a file."""
    categories = read_json(arguments.data / "instances_train.json")["categories"]
    classes = tuple(category["name"] for category in categories)
    name = f"{model}-{loss}-{seed}"
    rate = arguments.learning_rate
    return Config(
        {
            "default_scope": "mmdet",
            "custom_hooks": [{"type": "EndEpochHook"}],
            "model": detector(model, loss, len(classes)),
            "train_dataloader": loader("train", classes, arguments),
            "test_dataloader": loader("test", classes, arguments),
            "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": arguments.epochs},
            "test_cfg": {"type": "TestLoop"},
            "test_evaluator": {
                "type": "CocoMetric",
                "ann_file": str(arguments.data / "instances_test.json"),
                "metric": "bbox",
            },
            "optim_wrapper": {
                "type": "OptimWrapper",
                "optimizer": {"type": "AdamW", "lr": rate, "weight_decay": 0.01},
                "clip_grad": {"max_norm": 10.0},
            },
            "param_scheduler": [
                {"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": 50},
                {"type": "CosineAnnealingLR", "T_max": arguments.epochs, "convert_to_iter_based": True},
            ],
            "default_hooks": {
                "checkpoint": {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 1},
                "logger": {"type": "LoggerHook", "interval": 10},
            },
            "randomness": {"seed": seed},
            "experiment_name": name,
            "work_dir": str(arguments.out / name),
            "resume": True,
        }
    )


@CheckpointLoader.register_scheme(prefixes="", force=True)
def load_own_checkpoint(filename: str, map_location: str | None) -> dict:
    """A checkpoint of mmengine holds more than weights, which torch.load refuses since 2.6 unless it is told to."""
    return torch.load(filename, map_location=map_location, weights_only=False)


def train_and_test(model: str, loss: str, seed: int, arguments: argparse.Namespace) -> dict:
    """One run, as results.json keeps it."""
    start = time.perf_counter()
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
        "seconds": round(time.perf_counter() - start),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="COCO-format folder")
    parser.add_argument("--model", nargs="+", choices=[*MODELS, "all"], default=["retinanet"])
    parser.add_argument("--loss", nargs="+", choices=[*LOSSES, "all"], default=["rank_sort"])
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), default=(256, 192), help="of its images")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=Path("out/mmdetection"))
    arguments = parser.parse_args()
    models = list(MODELS) if "all" in arguments.model else arguments.model
    losses = list(LOSSES) if "all" in arguments.loss else arguments.loss
    settings = {name: vars(arguments)[name] for name in ("size", "epochs", "batch_size", "learning_rate")}
    try:
        results = Results(arguments.out, ("mmdet", "mmcv", "mmengine"), {**settings, "size": list(arguments.size)})
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

"""Detections of a split and their COCO AP."""

from typing import NamedTuple

import numpy as np
import torch
from data import Split
from detector import Detections, Detector, box_iou, detect, make_anchors
from faster_coco_eval import COCO, COCOeval_faster
from scipy.stats import spearmanr

BATCH_SIZE = 32


class Score(NamedTuple):
    """COCO's mean average precision over IoU 0.50:0.95, at IoU 0.50 and at IoU 0.75."""

    ap: float
    ap50: float
    ap75: float


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Pixels 0..255 as the detector takes them: about -1..1, channels last, which is faster on a CPU."""
    return images.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def detect_split(model: Detector, split: Split, device: torch.device) -> list[Detections]:
    """Detections of every image of `split`, in pixels of the resized image."""
    model.eval()
    size = tuple(split.images.shape[-2:])
    anchors = torch.cat(make_anchors(*size)).to(device)
    detections = []
    for images in split.images.split(BATCH_SIZE):
        detections += detect(*model(normalize(images.to(device))), anchors, size)
    model.train()
    return [Detections(*(column.cpu() for column in image)) for image in detections]


def coco_score(detections: list[Detections], split: Split, categories: list[dict]) -> Score:
    """Average precision against the annotations of the original images."""
    return Score(*(float(value) for value in _evaluate(detections, split, categories).stats[:3]))


def coco_details(detections: list[Detections], split: Split, categories: list[dict]) -> dict:
    """The same, and AP at each of the ten IoU thresholds, of each class, and the `correlation` of score and IoU."""
    evaluation = _evaluate(detections, split, categories)
    precision = evaluation.eval["precision"][..., 0, -1]  # [IoU, recall, class] over all areas; -1 where nothing is
    precision = np.where(precision < 0, np.nan, precision)
    names = (category["name"] for category in categories)
    return {
        **dict(zip(Score._fields, map(float, evaluation.stats), strict=False)),
        "by_iou": np.nanmean(precision, axis=(1, 2)).tolist(),
        "by_class": dict(zip(names, np.nanmean(precision, axis=(0, 1)).tolist(), strict=True)),
        "correlation": correlation(detections, split),
    }


def _evaluate(detections: list[Detections], split: Split, categories: list[dict]) -> COCOeval_faster:
    results = []
    for image, scale, found in zip(split.coco["images"], split.scales, detections, strict=True):
        boxes = found.boxes / scale.repeat(2)
        boxes[:, 2:] -= boxes[:, :2]
        for box, score, label in zip(boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
            category = categories[label]["id"]
            results.append({"image_id": image["id"], "category_id": category, "bbox": box, "score": score})
    truth = COCO(split.coco)
    evaluation = COCOeval_faster(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def correlation(detections: list[Detections], split: Split) -> float:
    """Spearman's rank correlation of the score of a detection and its IoU with the nearest true box of its class.

    Of the detections that hit one, at an IoU of 0.5 at least; it tells how well scores say where boxes are good.
    """
    scores, ious = [], []
    for found, boxes, labels in zip(detections, split.boxes, split.labels, strict=True):
        iou = box_iou(found.boxes, boxes) * (found.labels[:, None] == labels)
        best = torch.cat((iou, iou.new_zeros(len(iou), 1)), dim=1).amax(1)
        scores += found.scores[best >= 0.5].tolist()
        ious += best[best >= 0.5].tolist()
    return float(spearmanr(scores, ious).statistic)

"""Detections of a split and their COCO AP."""

from typing import NamedTuple

import torch
from data import Split
from detector import Detections, Detector, detect, make_anchors
from faster_coco_eval import COCO, COCOeval_faster

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
    """AP, AP50 and AP75 against the annotations of the original images."""
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
    return Score(*(float(value) for value in evaluation.stats[:3]))

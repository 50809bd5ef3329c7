"""Data of the example: what a split holds, reading a folder in COCO format, and training batches.

Everything is decoded, resized and assigned to anchors once and kept in memory: all losses see the same data, and none
of that work is repeated per epoch.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detector import assign, make_anchors
from PIL import Image
from torch import Tensor


class InputError(Exception):
    """What is wrong with what the user gave, in one line."""


@dataclass
class Split:
    """Resized images with their objects, and the ground truth of the original images."""

    images: Tensor  # [N, 3, H, W], uint8
    boxes: list[Tensor]  # per image [n, 4], xyxy in pixels of the resized image
    labels: list[Tensor]  # per image [n], index into the categories
    crowds: list[Tensor]  # per image [n, 4], regions with objects that have no box of their own
    scales: Tensor  # [N, 2], resized over original width and height
    coco: dict  # the annotation file, its images in the order of `images`


@dataclass
class Dataset:
    """Three splits over the same classes; `flip` tells whether mirrored images are valid training data."""

    name: str
    train: Split
    val: Split
    test: Split
    categories: list[dict]
    flip: bool


def coco_folder(folder: Path, width: int, height: int) -> Dataset:
    """`folder/images/*` and `folder/instances_{train,val,test}.json`, every image resized to `width` x `height`."""
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    paths = [folder / f"instances_{split}.json" for split in ("train", "val", "test")]
    files = [read_json(path) for path in paths]
    categories, splits = [], []
    for path, coco in zip(paths, files, strict=True):
        try:
            categories = categories or sorted(coco["categories"], key=lambda category: category["id"])
            splits.append(_read_split(folder / "images", coco, categories, width, height))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is not a valid COCO annotation file: {error!r}") from error
    return Dataset(folder.resolve().name, *splits, categories=categories, flip=True)


def read_json(path: Path) -> dict:
    """A COCO annotation file."""
    try:
        coco = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"broken JSON in {path}: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list) or not coco[key]:
            raise InputError(f"{path} is not a COCO annotation file: '{key}' is missing or empty")
    return coco


def _read_split(folder: Path, coco: dict, categories: list[dict], width: int, height: int) -> Split:
    label_of = {category["id"]: label for label, category in enumerate(categories)}
    by_image = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    boxes, labels, crowds = [], [], []
    images = torch.empty(len(coco["images"]), 3, height, width, dtype=torch.uint8)
    scales = torch.empty(len(coco["images"]), 2)
    for i, entry in enumerate(coco["images"]):
        images[i], scales[i] = _read_image(folder / entry["file_name"], width, height)
        annotations = [a for a in by_image[entry["id"]] if a["bbox"][2] > 0 and a["bbox"][3] > 0]
        objects = [a for a in annotations if not a.get("iscrowd")]
        boxes.append(_boxes(objects, scales[i]))
        labels.append(torch.tensor([label_of[a["category_id"]] for a in objects], dtype=torch.long))
        crowds.append(_boxes([a for a in annotations if a.get("iscrowd")], scales[i]))
    return Split(images, boxes, labels, crowds, scales, coco)


def _boxes(annotations: list[dict], scale: Tensor) -> Tensor:
    boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float32).view(-1, 4)
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1) * scale.repeat(2)


def _read_image(path: Path, width: int, height: int) -> tuple[Tensor, Tensor]:
    try:
        with Image.open(path) as image:
            scale = torch.tensor((width / image.width, height / image.height))
            pixels = np.array(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))
    # Pillow also raises SyntaxError, ValueError and DecompressionBombError for broken or hostile files.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot decode image {path}: {str(error).splitlines()[0]}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1), scale


class Batch(NamedTuple):
    """Images [B, 3, H, W] in 0..255 and what each of their anchors is to learn: labels [B, A] and boxes [B, A, 4]."""

    images: Tensor
    labels: Tensor
    boxes: Tensor


class TrainingSet:
    """The training split on `device`, its anchors assigned once: as it is and, if the data allow it, mirrored."""

    def __init__(self, dataset: Dataset, device: torch.device, top_k: int = 9):
        split = dataset.train
        self.width = split.images.shape[-1]
        anchors = make_anchors(*split.images.shape[-2:])
        self.images = split.images.to(device)
        labels, boxes = [], []
        for mirror in (False, True)[: 1 + dataset.flip]:
            for image_boxes, image_labels, crowds in zip(split.boxes, split.labels, split.crowds, strict=True):
                if mirror:
                    image_boxes, crowds = self._mirrored(image_boxes), self._mirrored(crowds)
                assignment = assign(anchors, image_boxes, image_labels, crowds, len(dataset.categories), top_k)
                labels.append(assignment.labels)
                boxes.append(assignment.boxes)
        # [orientation, image, anchor]
        self.labels = torch.stack(labels).view(-1, len(self.images), len(labels[0])).to(device)
        self.boxes = torch.stack(boxes).view(*self.labels.shape, 4).to(device)

    def _mirrored(self, boxes: Tensor) -> Tensor:
        return torch.stack((self.width - boxes[:, 2], boxes[:, 1], self.width - boxes[:, 0], boxes[:, 3]), dim=1)

    def batches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch in random order, each image in a random orientation."""
        order = torch.randperm(len(self.images), generator=generator)
        mirror = torch.randint(len(self.labels), (len(order),), generator=generator)
        for index, flip in zip(order.split(batch_size), mirror.split(batch_size), strict=True):
            index, flip = index.to(self.images.device), flip.to(self.images.device)
            images = self.images[index]
            images = torch.where(flip.bool().view(-1, 1, 1, 1), images.flip(-1), images)
            yield Batch(images, self.labels[flip, index], self.boxes[flip, index])

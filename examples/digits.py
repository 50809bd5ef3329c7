"""The default data, made on the spot: real handwritten digits at random places, scales and contrasts in scenes."""

import torch
import torch.nn.functional as F
from data import Dataset, Split
from sklearn.datasets import load_digits
from torch import Tensor

NUM_VAL, NUM_TEST = 64, 160


def digit_scenes(num_train: int, size: int, seed: int, imbalance: float = 1.0) -> Dataset:
    """Scenes of `size` x `size` pixels. The splits share no digit: held-out scores are about unseen handwriting.

    In the training scenes a 0 is `imbalance` times as frequent as a 9, the others between them in equal ratios.
    """
    digits, classes = load_digits(return_X_y=True)
    digits = torch.tensor(digits, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    classes = torch.tensor(classes, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits), generator=generator)
    categories = [{"id": label + 1, "name": str(label)} for label in range(10)]
    splits = []
    counts, ratios = (num_train, NUM_VAL, NUM_TEST), (imbalance, 1.0, 1.0)
    for own, count, ratio in zip(order.split((1300, 200, 297)), counts, ratios, strict=True):
        bounds = (ratio ** (-classes[own].double() / 9)).cumsum(0)
        scenes = [_scene(digits[own], classes[own], bounds, size, generator) for _ in range(count)]
        images, boxes, labels = (list(column) for column in zip(*scenes, strict=True))
        coco = _coco_dictionary(boxes, labels, categories, size)
        splits.append(
            Split(torch.stack(images), boxes, labels, [torch.zeros(0, 4)] * count, torch.ones(count, 2), coco)
        )
    # A mirrored digit is no digit.
    return Dataset("digits", *splits, categories=categories, flip=False)


def _scene(
    digits: Tensor, classes: Tensor, bounds: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    def draw() -> int:
        """A digit, each as often as its share of the last of `bounds`."""
        return int(torch.searchsorted(bounds, uniform(0, bounds[-1].item()), right=True))

    coarse = torch.rand(1, 3, 3, 3, generator=generator)
    scene = 0.25 + 0.5 * F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[0]
    scene += 0.04 * torch.randn(3, size, size, generator=generator)
    boxes, labels = [], []
    for _ in range(int(uniform(3, 9))):
        index = draw()
        side = int(size * 0.13 * 3.2 ** uniform(0, 1))
        ink = F.interpolate(digits[index][None], size=(side, side), mode="bicubic")[0, 0].clamp(0, 1)
        rows, columns = (ink > 0.3).any(1).nonzero()[:, 0], (ink > 0.3).any(0).nonzero()[:, 0]
        ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = ink.shape
        # A few attempts to find a free place; a crowded scene simply gets fewer digits.
        for _ in range(10):
            x, y = int(uniform(0, size - width)), int(uniform(0, size - height))
            if all(x >= b[2] or x + width <= b[0] or y >= b[3] or y + height <= b[1] for b in boxes):
                contrast = uniform(0.35, 0.9) * (1 if uniform(0, 1) < 0.5 else -1)
                scene[:, y : y + height, x : x + width] += contrast * ink
                boxes.append((x, y, x + width, y + height))
                labels.append(classes[index])
                break
    image = (scene.clamp(0, 1) * 255).round().to(torch.uint8)
    return image, torch.tensor(boxes, dtype=torch.float32), torch.stack(labels)


def _coco_dictionary(boxes: list[Tensor], labels: list[Tensor], categories: list[dict], size: int) -> dict:
    images = [{"id": i, "width": size, "height": size} for i in range(len(boxes))]
    annotations = [
        {"image_id": i, "category_id": categories[label]["id"], "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
        for i in range(len(boxes))
        for (x1, y1, x2, y2), label in zip(boxes[i].tolist(), labels[i].tolist(), strict=True)
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation |= {"id": number, "area": annotation["bbox"][2] * annotation["bbox"][3]}
    return {"images": images, "annotations": annotations, "categories": categories}

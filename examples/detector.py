"""A small single-stage anchor detector: backbone, feature pyramid, two towers, anchors, assignment, decoding, NMS."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 16, 32)
ANCHOR_SCALE = 4  # side of the one square anchor of a cell, in strides
DELTA_STD = (0.1, 0.1, 0.2, 0.2)


def conv_block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, group norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.GroupNorm(8, out_channels),
        nn.ReLU(inplace=True),
    )


class Detector(nn.Module):
    """Images [B, 3, H, W] -> class logits [B, A, C] and box deltas [B, A, 4], all levels concatenated."""

    def __init__(self, num_classes: int, prior: float, width: int = 48):
        super().__init__()
        # Convolutions at full and half resolution would take most of the time on a CPU: fold 2 x 2 pixels first.
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), conv_block(12, 32, 2))
        channels = (32, 64, 96, 96)
        self.stages = nn.ModuleList(
            nn.Sequential(conv_block(before, after, 2), conv_block(after, after))
            for before, after in pairwise(channels)
        )
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels[1:])
        self.class_tower = conv_block(width, width)
        self.box_tower = conv_block(width, width)
        self.class_output = nn.Conv2d(width, num_classes, 3, padding=1)
        self.box_output = nn.Conv2d(width, 4, 3, padding=1)
        for output in (self.class_output, self.box_output):
            nn.init.normal_(output.weight, std=0.01)
            nn.init.zeros_(output.bias)
        # Almost every anchor is background: all scores start at `prior` (focal loss paper, section 4.1).
        nn.init.constant_(self.class_output.bias, -math.log((1 - prior) / prior))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and deltas."""
        features = self.stem(images)
        pyramid = []
        for stage, lateral in zip(self.stages, self.laterals, strict=True):
            features = stage(features)
            pyramid.append(lateral(features))
        for fine in reversed(range(len(pyramid) - 1)):
            pyramid[fine] = pyramid[fine] + F.interpolate(pyramid[fine + 1], scale_factor=2)
        logits = [self.class_output(self.class_tower(level)) for level in pyramid]
        deltas = [self.box_output(self.box_tower(level)) for level in pyramid]
        return _flatten(logits), _flatten(deltas)


def _flatten(levels: list[Tensor]) -> Tensor:
    return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)


def make_anchors(height: int, width: int) -> list[Tensor]:
    """Anchors of every level, xyxy, in the order of the detector's outputs; height and width are multiples of 32."""
    levels = []
    for stride in STRIDES:
        y = (torch.arange(height // stride) + 0.5) * stride
        x = (torch.arange(width // stride) + 0.5) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack((x, y), dim=-1).reshape(-1, 2)
        half = ANCHOR_SCALE * stride / 2
        levels.append(torch.cat((centres - half, centres + half), dim=1))
    return levels


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Pairwise IoU [N, M] of boxes [N, 4] and [M, 4]."""
    top_left = torch.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    bottom_right = torch.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(-1)
    area1 = (boxes1[:, 2:] - boxes1[:, :2]).prod(-1)
    area2 = (boxes2[:, 2:] - boxes2[:, :2]).prod(-1)
    return intersection / (area1[:, None] + area2[None] - intersection).clamp(min=1e-9)


class Assignment(NamedTuple):
    """What each anchor is to learn: a class (`num_classes` = background, -1 = ignored) and a box."""

    labels: Tensor
    boxes: Tensor


def assign(
    anchors: list[Tensor], boxes: Tensor, labels: Tensor, crowds: Tensor, num_classes: int, top_k: int = 9
) -> Assignment:
    """ATSS (arXiv 1912.02424): a box takes, of the nearest `top_k` anchors per level, those of IoU >= mean + std.

    `crowds` are regions with unlabelled objects: anchors centred there that got no box are ignored.
    """
    flat = torch.cat(anchors)
    centres = (flat[:, :2] + flat[:, 2:]) / 2
    result = Assignment(torch.full((len(flat),), num_classes), flat.clone())
    if len(crowds):
        result.labels[_inside(centres, crowds).any(dim=1)] = -1
    if len(boxes) == 0:
        return result
    iou = box_iou(flat, boxes)
    distance = torch.cdist(centres, (boxes[:, :2] + boxes[:, 2:]) / 2)
    candidates, start = [], 0
    for level in anchors:
        nearest = distance[start : start + len(level)].topk(min(top_k, len(level)), dim=0, largest=False).indices
        candidates.append(nearest + start)
        start += len(level)
    candidates = torch.cat(candidates)
    candidate_iou = iou.gather(0, candidates)
    threshold = candidate_iou.mean(dim=0) + candidate_iou.std(dim=0)
    chosen = (candidate_iou >= threshold) & _inside(centres, boxes).gather(0, candidates)
    # An anchor that two boxes want goes to the one it overlaps more.
    claims = torch.full_like(iou, -1.0).scatter_(0, candidates, torch.where(chosen, candidate_iou, -1.0))
    best_iou, best_box = claims.max(dim=1)
    positive = best_iou >= 0
    result.labels[positive] = labels[best_box[positive]]
    result.boxes[positive] = boxes[best_box[positive]]
    return result


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    return ((points[:, None] > boxes[None, :, :2]) & (points[:, None] < boxes[None, :, 2:])).all(dim=-1)


def encode(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Boxes as deltas from their anchors: centre shift in anchor sizes, log of the size ratio, each over its std."""
    anchor_size, size = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2 / anchor_size
    return torch.cat((shift, torch.log(size / anchor_size)), dim=-1) / shift.new_tensor(DELTA_STD)


def decode(anchors: Tensor, deltas: Tensor) -> Tensor:
    """Inverse of `encode`."""
    deltas = deltas * deltas.new_tensor(DELTA_STD)
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * anchor_size
    # exp() of a wild delta must not overflow.
    half = anchor_size * deltas[..., 2:].clamp(max=4.0).exp() / 2
    return torch.cat((centre - half, centre + half), dim=-1)


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each class; indices of what stays, best first."""
    order = scores.argsort(descending=True)
    clash = box_iou(boxes[order], boxes[order]) > threshold
    clash &= labels[order, None] == labels[order]
    # On the host: the loop is sequential, and each step would be a synchronization on a GPU.
    clash = clash.cpu().numpy()
    keep, suppressed = [], torch.zeros(len(order), dtype=torch.bool).numpy()
    for i in range(len(order)):
        if not suppressed[i]:
            keep.append(i)
            suppressed |= clash[i]
    return order[torch.tensor(keep, dtype=torch.long, device=order.device)]


class Detections(NamedTuple):
    """Boxes [N, 4], scores [N] and labels [N] of one image, best first."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@torch.no_grad()
def detect(logits: Tensor, deltas: Tensor, anchors: Tensor, size: tuple[int, int]) -> list[Detections]:
    """Detections of each image: the 300 best (anchor, class) pairs, decoded, clipped to `size` (H, W), NMS, best 100.

    There is no score threshold: a ranking loss fixes the order of the scores, not their level.
    """
    results = []
    limit = deltas.new_tensor((size[1], size[0], size[1], size[0]))
    for image_logits, image_deltas in zip(logits, deltas, strict=True):
        scores, index = image_logits.flatten().topk(min(300, image_logits.numel()))
        anchor, label = index // logits.shape[-1], index % logits.shape[-1]
        boxes = decode(anchors[anchor], image_deltas[anchor]).clamp(min=0).minimum(limit)
        keep = nms(boxes, scores, label, threshold=0.6)[:100]
        results.append(Detections(boxes[keep], scores[keep].sigmoid(), label[keep]))
    return results

"""Random calls: every loss, dtype, form of targets and option; ties, infinities, NaN, and nothing at all."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .calls import BOXES, OTHERS, RANKING, SIGMOID, Call

DTYPES = (torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64)
LABEL_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
DRAWN = (*2 * (*RANKING, *SIGMOID, *OTHERS), *BOXES)
REDUCTIONS = ("none", "mean", "sum")


def draw(seed: int, number: int, largest: int) -> Call:
    """Call `number` of a run; with logits, of about `largest` of them at most."""
    rng = random.Random(f"{seed}-{number}")
    return _Drawing(rng, torch.Generator().manual_seed(rng.getrandbits(60)), largest).call()


class _Drawing:
    def __init__(self, rng: random.Random, generator: torch.Generator, largest: int) -> None:
        self.rng, self.generator, self.largest = rng, generator, largest

    def maybe(self, probability: float) -> bool:
        return self.rng.random() < probability

    def options(self, share: float = 0.5, **values: Sequence[Any]) -> dict[str, Any]:
        """Some of the options, each at one of its values."""
        return {name: self.rng.choice(values[name]) for name in values if self.maybe(share)}

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def call(self) -> Call:
        name = self.rng.choice(DRAWN)
        self.dtype = self.rng.choice(DTYPES)
        form = {"strided": self.rng.choice((False, False, "transposed", "sliced"))}
        if name in (*BOXES, "harmonic", "iou_balanced_smooth_l1"):
            return self.call_of_rows(name, form)
        options = getattr(self, f"options_of_{name}")()
        shapes = ("images",) if options.get("per_image") else ("images", "images", "flat", "vector")
        form["shape"] = self.rng.choice(shapes)
        call = Call(name, {}, options, form)
        # Dense targets say nothing of a softmax.
        dense = not call.is_softmax and (form["shape"] == "vector" or self.maybe(0.4))
        if form["shape"] == "vector" and not dense:
            form["shape"] = self.rng.choice(("flat", "anchor"))
        logits, targets, form["targets"] = self.candidates(call, dense)
        call = replace(call, tensors={"logits": logits, "targets": targets})
        if call.is_softmax and self.maybe(0.3):
            options["background"] = self.rng.randrange(-logits.shape[-1], logits.shape[-1])
        form["per_anchor"] = self.maybe(0.5)
        call.tensors.update(self.values(call))
        if name in RANKING and self.maybe(0.3):
            num_positives = int(call.candidates[0].sum())
            options["max_positives"] = max(1, num_positives + self.rng.choice((-1, 0, 0, 1, 5)))
        return call

    def candidates(self, call: Call, dense: bool) -> tuple[Tensor, Tensor, torch.dtype]:
        """(logits [B, A, C], targets [B, A, C] or labels [B, A], the dtype that targets are given in)."""
        num_classes = self.rng.choice((1, 1, 2, 3, 3, 5, 5, 17, 80, 130, 200, 300))
        most = self.largest if self.maybe(0.2) else self.largest // 5
        num_classes = max(1 + call.is_softmax * self.maybe(0.9), min(num_classes, most))
        if call.form["shape"] == "vector":  # each logit is an anchor
            num_classes = 1
        num_images = self.rng.choice((1, 1, 2, 3, 5))
        most = max(1, self.largest // (num_classes * num_images))
        num_anchors = min(most, self.rng.choice((0, 1, 2, 3, 7, 16, 33, 100, most, most, most)))
        if self.maybe(0.02):
            num_images = 0
        if call.form["shape"] == "anchor":
            num_images = num_anchors = 1
        shape = (num_images, num_anchors, num_classes)
        if dense:
            share = self.rng.choice((0, 0.02, 0.2, 0.2, 0.5, 0.5, 1))
            targets = (self.uniform(*shape) < share).long()
            targets[self.uniform(*shape) < self.ignored()] = -1
            dtype = self.rng.choice((*LABEL_DTYPES, torch.float32, torch.float64, torch.bfloat16, torch.bool))
            if dtype in (torch.uint8, torch.bool):
                targets = targets.clamp(min=0)
            return self.scores(shape), targets, dtype
        dtype = self.rng.choice(LABEL_DTYPES)
        last = num_classes - call.is_softmax  # the background, by default
        labels = torch.randint(0, max(1, last), shape[:2], generator=self.generator)
        labels[self.uniform(*shape[:2]) < self.rng.choice((0, 0.3, 0.3, 0.3, 0.8, 0.8, 0.95, 1))] = last
        labels[self.uniform(*shape[:2]) < self.ignored()] = -1
        if self.maybe(0.05):
            labels[self.uniform(*shape[:2]) < 0.2] = last + 3
        limits = torch.iinfo(dtype)
        return self.scores(shape), labels.clamp(max(-1, limits.min), limits.max), dtype

    def ignored(self) -> float:
        """How much of the targets is."""
        return self.rng.choice((0, 0, 0.1, 0.2, 0.2, 0.2, 0.5, 1))

    def scores(self, shape: tuple[int, ...]) -> Tensor:
        kind = self.rng.choice(("normal", "init", "wide", "ties", "ties", "shifted", "shifted", "constant", "far"))
        x = self.normal(*shape)
        if kind == "init":
            x = 0.05 * x - 4.6
        elif kind == "wide":
            x = 30 * x
        elif kind in ("ties", "shifted"):
            x = (2 * x).round() / 2 if self.maybe(0.5) or kind == "ties" else x
        elif kind == "constant":
            x = torch.full_like(x, x.mean().item() if x.numel() else 0)
        elif kind == "far":
            x = torch.where(self.uniform(*shape) < 0.5, x, 1000 * x)
        if kind == "shifted":
            x = x + self.rng.choice((-1, 1)) * 10 ** self.rng.uniform(0, 7)
        if self.maybe(0.25):
            for value in (torch.inf, -torch.inf):
                x[self.uniform(*shape) < self.rng.choice((0, 0.1, 0.3, 1))] = value
        if self.maybe(0.04):
            x[self.uniform(*shape) < self.rng.choice((0.02, 0.3))] = torch.nan
        return x.to(self.dtype)

    def values(self, call: Call) -> dict[str, Tensor]:
        """What is given for each positive, drawn for each logit; where it is given per anchor, the same for each."""
        shape, dtype = call.tensors["logits"].shape, self.rng.choice((self.dtype, *DTYPES))
        if call.form["per_anchor"]:
            shape = (*shape[:2], 1)
        of_logits = call.tensors["logits"].shape

        def row(values: Tensor) -> Tensor:
            return values.expand(*of_logits, *values.shape[3:]).to(dtype)

        u = self.uniform(*shape)
        u = (u * 4).round() / 4 if self.maybe(0.4) else u
        u = u * self.rng.choice((1, 1, 1, 1e-3, 0))
        if call.name == "alrp":
            return {"localization_errors": row(u)}
        if call.name == "rank_sort" and call.tensors["targets"].dim() == 3 and self.maybe(0.3):
            return {"values_in_targets": row(u.clamp(min=1e-3))}
        boxes = dict(zip(("pred_boxes", "target_boxes"), map(row, self.boxes(*shape))))
        if call.name == "harmonic_detection":
            names = ("pred_deltas", "target_deltas") if self.maybe(0.6) else ()
            return boxes | {name: row(self.normal(*shape, 4)) for name in names}
        if call.name.startswith("iou_balanced") and self.maybe(0.3):
            return boxes
        return {"iou": row(u)} if call.name not in ("ap", "dr") else {}

    def boxes(self, *shape: int) -> tuple[Tensor, Tensor]:
        """Pairs, most of which overlap; some touch, or share ends; sides are above 0."""
        scale = self.rng.choice((1, 10, 1000))
        corner = scale * self.normal(*shape, 2)
        first = torch.cat([corner, corner + scale * (0.01 + self.uniform(*shape, 2))], -1)
        second = first + scale * self.rng.choice((0.1, 0.1, 2)) * self.uniform(*shape, 2).repeat(*[1] * len(shape), 2)
        if self.maybe(0.2):
            second = torch.where(self.uniform(*shape, 4) < 0.3, first, second)
        return first, second

    def call_of_rows(self, name: str, form: dict[str, Any]) -> Call:
        """Of pairs of boxes, of offsets, or of losses."""
        num = self.rng.choice((0, 1, 2, 5, 17, min(100, self.largest)))
        dtypes = [self.dtype, self.rng.choice((self.dtype, *DTYPES))]
        if name in BOXES:
            names = ("pred_boxes", "target_boxes") if name == "harmonic_iou" else ("boxes1", "boxes2")
            pairs = self.boxes(num) if self.maybe(0.9) else (self.normal(num, 4), self.normal(num, 4))
            options = self.options(reduction=REDUCTIONS, eps=(1e-7, 1e-3))
            if name == "harmonic_iou":
                options |= self.options(gamma=(0.0, 0.5, 1.0))
            return Call(name, {n: x.to(d) for n, x, d in zip(names, pairs, dtypes)}, options, form)
        if name == "harmonic":
            names = ("classification_losses", "localization_losses")
            tensors = {n: (self.rng.choice((1, 5)) * self.uniform(num)).to(d) for n, d in zip(names, dtypes)}
            return Call(name, tensors, self.options(detach_factors=(True, False)), form)
        width = self.rng.choice((1, 4, 4, 5))
        tensors = {n: self.normal(num, width).to(d) for n, d in zip(("pred", "target"), dtypes)}
        given = {"iou": self.uniform(num)}
        if self.maybe(0.3):
            given = dict(zip(("pred_boxes", "target_boxes"), self.boxes(num)))
        tensors |= {n: x.to(dtypes[1]) for n, x in given.items()}
        options = self.options(lambda_=(0, 1, 2.5), beta=(0, 0.1, 2.0), loss_weight=(0, 3.0)) | self.avg_factor()
        return Call(name, tensors, options, form)

    def avg_factor(self) -> dict[str, Any]:
        number = self.rng.choice((1, 7, 0.5, 1e4))
        return self.options(avg_factor=(number, torch.tensor(float(number)), torch.tensor(max(1, int(number)))))

    def options_of_ap(self) -> dict[str, Any]:
        return self.options_of_ranking() | self.options(interpolate=(True, False))

    def options_of_alrp(self) -> dict[str, Any]:
        return self.options_of_ranking() | self.options(eps=(0, 1e-3), share=0.2)

    options_of_rank_sort = options_of_alrp

    def options_of_ranking(self) -> dict[str, Any]:
        deltas = (0, 0.0, 1e-6, 1e-3, 0.1, 0.3, 0.5, 1.0, 4, 100.0)
        return self.options(per_image=(True, False)) | self.options(delta=deltas, share=0.8)

    def options_of_dr(self) -> dict[str, Any]:
        return self.options(per_image=(True, False)) | self.options(
            0.3, margin=(0, 0.2), pos_lambda=(0.1, 3), neg_lambda=(0.05, 1.0), L=(1.0, 20), tau=(1, 0.3)
        )

    def options_of_iou_balanced_focal(self) -> dict[str, Any]:
        return self.options(0.3, eta=(0, 1, 3.0), alpha=(0, 0.5, 1), gamma=(0, 0.5, 1, 3.0)) | self.avg_factor()

    def options_of_iou_balanced_bce(self) -> dict[str, Any]:
        return self.options(0.3, eta=(0, 1, 3.0)) | self.avg_factor()

    options_of_iou_balanced_cross_entropy = options_of_iou_balanced_bce

    def options_of_task_contrastive(self) -> dict[str, Any]:
        return self.options(activation=("sigmoid", "softmax"), reduction=REDUCTIONS) | self.options(margin=(0, 0.05))

    def options_of_harmonic_detection(self) -> dict[str, Any]:
        options = {"classification": self.rng.choice(("bce", "focal", "softmax"))} | self.avg_factor()
        options |= self.options(0.2, focal_alpha=(0, 0.6), focal_gamma=(0, 0.5, 3.0), beta=(0, 0.2), eps=(1e-3,))
        options |= self.options(0.2, iou_weight=(0, 1), iou_gamma=(0, 1), detach_factors=(True,))
        return options | self.options(0.3, task_contrastive_weight=(0.5, 2), task_contrastive_margin=(0, 0.05))

"""Every public loss on generated inputs: what `check` evaluates, and what `info` and `kernels` watch running."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import triton_rankloss as rankloss

# Mean and standard deviation of the scores of negatives and of positives, and the lowest of positives.
SCORES = {
    "init": ((-4.6, 0.05), (-4.6, 0.05), -100.0),  # before the first step: one narrow band
    "trained": ((-8.0, 1.5), (-2.0, 1.5), -3.5),  # one negative in a hundred reaches a positive
    "hard": ((-6.0, 1.5), (-1.0, 1.5), -100.0),
}


class Size(NamedTuple):
    """Of the generated inputs."""

    images: int
    anchors: int  # per image
    classes: int
    positives: int  # in all images together
    boxes: int  # of losses that take boxes or losses of positives, and no logits


SIZES = {
    "tiny": Size(2, 40, 6, 12, 50),  # Triton's interpreter takes milliseconds for every operation on a block
    "small": Size(2, 1000, 20, 60, 1000),
    "real": Size(2, 200_000, 80, 400, 2**20),
}


class Form(NamedTuple):
    """How targets are given, what is ranked together, and which scores there are."""

    name: str
    labels: bool = True
    per_image: bool = False
    scores: str = "hard"
    ranking: tuple[tuple[str, Any], ...] = ()  # further options of the ranking losses
    positives: int | None = None  # so few that AP Loss counts by pairs; by default as many as the size has


# Between them: both forms of targets and scopes, every regime of scores, both steps.
FORMS = (
    Form("labels"),
    Form("dense", labels=False, scores="init"),
    Form("labels, per image", per_image=True, scores="trained"),
    Form("dense, hard step", labels=False, ranking=(("delta", 0),)),
    Form("labels, few positives", ranking=(("max_positives", 4),), positives=3),
)


class Case(NamedTuple):
    """One loss, on one input."""

    loss: str  # name of the public function
    variant: str
    call: Callable[..., Any]  # takes the leaves
    leaves: tuple[Tensor, ...]  # float32: what gradients are taken of
    positive: Tensor | None = None  # which entries of the first leaf are positives: their gradients are far larger

    def outputs(self, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The losses, one or several."""
        outputs = self.call(*leaves)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    def evaluate(self, leaves: Sequence[Tensor], scale: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
        """(losses, gradients), for upstream gradients that differ and whose largest is `scale`."""
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        outputs = self.outputs(leaves)
        upstream = [scale / (k + 1) * ramp(output) for k, output in enumerate(outputs)]
        gradients = torch.autograd.grad(outputs, leaves, upstream)
        return [output.detach() for output in outputs], list(gradients)


def ramp(like: Tensor) -> Tensor:
    """From 1 to 1/2."""
    return torch.linspace(1, 0.5, like.numel(), dtype=like.dtype, device=like.device).view(like.shape)


class Inputs:
    """Random logits, targets and boxes; the same for the same seed, size and device."""

    def __init__(self, size: Size, scores: str, device: torch.device, seed: int = 0) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        negatives, positives, lowest = SCORES[scores]
        kind: dict[str, Any] = {"device": device}

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, **kind)

        num_anchors = size.images * size.anchors
        self.logits = torch.empty(size.images, size.anchors, size.classes, **kind).normal_(
            *negatives, generator=generator
        )
        # Every image has positives: which anchors, from each of as many equal parts of all of them.
        part = num_anchors // size.positives
        anchors = torch.arange(size.positives, **kind) * part + (uniform(size.positives) * part).long()
        # The last class stays free: the same labels serve as channels of a softmax, where it is the background.
        classes = (uniform(size.positives) * (size.classes - 1)).long()
        at = anchors * size.classes + classes
        at_positives = torch.empty(size.positives, **kind).normal_(*positives, generator=generator)
        self.logits.view(-1)[at] = at_positives.clamp(min=lowest)

        labels = torch.full((num_anchors,), size.classes, **kind)
        labels[uniform(num_anchors) < 0.01] = -1
        labels[anchors] = classes
        self.labels = labels.view(size.images, size.anchors)
        self.iou = 0.05 + 0.95 * uniform(size.positives)
        self.positive = torch.zeros(self.logits.shape, dtype=torch.bool, **kind)
        self.positive.view(-1)[at] = True
        # The IoU of a positive is its value in dense targets, as Rank & Sort Loss reads them.
        self.dense = (self.labels < 0).float().neg().unsqueeze(-1).repeat(1, 1, size.classes)
        self.dense.view(-1)[at] = self.iou

        self.errors = uniform(size.positives)
        self.pred_boxes, self.target_boxes = box_pairs(size.positives, uniform)
        self.pred_deltas, self.target_deltas = 2 * uniform(size.positives, 4), uniform(size.positives, 4)
        self.many_boxes = box_pairs(size.boxes, uniform)
        self.many_deltas = 2 * uniform(size.boxes, 4), uniform(size.boxes, 4)
        self.many_losses = 3 * uniform(size.boxes), 2 * uniform(size.boxes)
        self.many_ious = uniform(size.boxes)


def box_pairs(num_boxes: int, uniform: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes in pixels, and others near them: most pairs overlap, some do not."""
    center, extent = 1000 * uniform(num_boxes, 2), 10 + 200 * uniform(num_boxes, 2)
    target = torch.cat([center - extent / 2, center + extent / 2], 1)
    moved = center + extent * (1.5 * uniform(num_boxes, 2) - 0.75)
    extent = extent * (0.5 + uniform(num_boxes, 2))
    return torch.cat([moved - extent / 2, moved + extent / 2], 1), target


def cases(form: Form, size: Size, device: torch.device) -> Iterator[Case]:
    """The losses that the form makes a difference to; those without logits come with the first form alone."""
    x = Inputs(size._replace(positives=form.positives or size.positives), form.scores, device)
    targets = x.labels if form.labels else x.dense
    scope: dict[str, Any] = {"per_image": form.per_image}
    ranking = scope | dict(form.ranking)

    def case(loss: str, call: Callable[..., Any], *leaves: Tensor) -> Case:
        return Case(loss, form.name, call, leaves, x.positive if leaves[0] is x.logits else None)

    yield case("ap_loss", lambda s: rankloss.ap_loss(s, targets, **ranking), x.logits)
    if form.positives:
        return
    yield case("alrp_loss", lambda s, e: rankloss.alrp_loss(s, targets, e, **ranking), x.logits, x.errors)
    iou = x.iou if form.labels else None
    yield case("rank_sort_loss", lambda s: rankloss.rank_sort_loss(s, targets, iou, **ranking), x.logits)
    if form.ranking:
        return
    yield case("dr_loss", lambda s: rankloss.dr_loss(s, targets, **scope), x.logits)
    if form.per_image:
        return
    yield case("iou_balanced_focal_loss", lambda s: rankloss.iou_balanced_focal_loss(s, targets, x.iou), x.logits)
    yield case("iou_balanced_bce_loss", lambda s: rankloss.iou_balanced_bce_loss(s, targets, x.iou), x.logits)
    yield case("task_contrastive_loss", lambda s, u: rankloss.task_contrastive_loss(s, targets, u), x.logits, x.iou)

    def detection(kind: str, targets: Tensor) -> Case:
        def call(s: Tensor, boxes: Tensor, deltas: Tensor) -> Tensor:
            return rankloss.harmonic_detection_loss(
                s, targets, boxes, x.target_boxes, pred_deltas=deltas, target_deltas=x.target_deltas,
                classification=kind, task_contrastive_weight=1.0,
            )  # fmt: skip

        leaves = (x.logits, x.pred_boxes, x.pred_deltas)
        return case("harmonic_detection_loss", call, *leaves)._replace(variant=f"{kind}, {form.name}")

    yield detection("focal", targets)
    if not form.labels:
        yield detection("bce", targets)
        return
    channels = x.labels.clamp(max=size.classes - 1)
    yield detection("softmax", channels)
    yield case(
        "iou_balanced_cross_entropy_loss",
        lambda s: rankloss.iou_balanced_cross_entropy_loss(s, channels, x.iou), x.logits,
    )  # fmt: skip
    yield from without_logits(x)


def without_logits(x: Inputs) -> Iterator[Case]:
    """The losses of boxes, of box offsets, and of losses."""
    for name in ("box_iou_loss", "generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"):
        yield Case(name, "", getattr(rankloss, name), x.many_boxes)
    yield Case("harmonic_iou_loss", "", rankloss.harmonic_iou_loss, x.many_boxes)
    yield Case("harmonic_loss", "", rankloss.harmonic_loss, x.many_losses)
    yield Case(
        "iou_balanced_smooth_l1_loss", "",
        lambda pred, target: rankloss.iou_balanced_smooth_l1_loss(pred, target, x.many_ious), x.many_deltas,
    )  # fmt: skip

"""Pictures of what an option does: delta, interpolation, eta, the factors of the harmonic loss; and of box losses."""

from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

import triton_rankloss as rankloss
from reference import ap, dense
from tools.themes import Theme

from .scene import IOU, LOGITS, POSITIVES, TARGETS, push

P = len(POSITIVES)
NEGATIVES = LOGITS[P:]
STEPS, EPOCH = 120, 20


def draw_delta(theme: Theme) -> Figure:
    """The step H, and the push on a negative as a function of its score."""
    figure, (step, carried) = plt.subplots(2, 1, figsize=(6, 5), layout="constrained")
    x, scores = torch.linspace(-3, 3, 301).double(), torch.linspace(-5.5, 5, 400).double()
    few = POSITIVES[[1, 5, 8]]  # their kinks can be seen
    for delta, colour, line in zip((0.25, 1.0, 2.0), theme.series, ("--", "-", "-."), strict=True):
        step.plot(x, dense.step(x, delta), line, color=colour, label=f"δ = {delta:g}")
        weights = ap.ap_error(few, dense.count(NEGATIVES, few, delta), delta, True, dense)[1] / len(few)
        carried.plot(scores, -dense.transport(scores, few, weights, delta), line, color=colour)
    carried.plot(few, torch.zeros(len(few)), "o", color=theme.ink, markersize=5)
    step.set_title("H: how much a score counts as above another")
    step.set_xlabel("score of the one minus score of the other")
    step.legend()
    carried.set_title("push of AP Loss on a negative")
    carried.set_xlabel("score of the negative; dots: positives")
    carried.set_yticks([0])
    return figure


def draw_interpolation(theme: Theme) -> Figure:
    """The precision of every positive, and its running maximum: what lies between is forgiven."""
    among = ap.rank_among_positives(POSITIVES, 1.0, dense)
    clustered = torch.tensor([-3.4, -3.3, -2.6, -2.5, -2.4, 0.9, 1.0, 1.1, 1.2, 1.3], dtype=torch.float64)
    above = dense.count(clustered, POSITIVES, 1.0)
    precision = among / (among + above)
    best = ap.running_maximum(POSITIVES, precision)
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.vlines(POSITIVES, precision, best, color=theme.series[2], linewidth=3)
    axes.step(POSITIVES, best, where="post", color=theme.series[0])
    axes.plot(POSITIVES, best, "o", color=theme.series[0], label="interpolated: $q_i$")
    axes.plot(POSITIVES, precision, "o", color=theme.series[1], markersize=4, label="as it is: $a_i / (a_i + b_i)$")
    axes.plot(clustered, torch.full_like(clustered, 0.27), "x", color=theme.negative, markersize=5)
    axes.set_xlabel("score of the positive; crosses: negatives")
    axes.set_ylabel("precision")
    axes.set_ylim(0.22, 1.04)
    axes.legend(loc="upper left")
    return figure


def draw_eta(theme: Theme) -> Figure:
    """What multiplies the loss of a positive: Z u^eta, here of focal terms at the scores of the scene."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    plain = push(partial(rankloss.iou_balanced_focal_loss, targets=TARGETS, iou=IOU, eta=0.0))[:P]
    order = IOU.argsort()
    for eta, colour, line in zip((0.5, 1.5, 4.0), theme.series, ("--", "-", "-."), strict=True):
        weighted = push(partial(rankloss.iou_balanced_focal_loss, targets=TARGETS, iou=IOU, eta=eta))[:P]
        axes.plot(IOU[order], (weighted / plain)[order], line, color=colour, marker="o", label=f"η = {eta:g}")
    axes.axhline(1, color=theme.faint, linewidth=0.8)
    axes.set_xlabel("IoU of the positive")
    axes.set_ylabel("weight")
    axes.legend()
    return figure


def draw_harmonic(theme: Theme) -> Figure:
    """The factor of the classification's gradient, as the box becomes worse."""
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    localization = torch.linspace(0, 3.5, 200).double()
    for classification, colour, line in zip((0.1, 0.7, 2.0), theme.series, ("--", "-", "-."), strict=True):
        c = torch.full_like(localization, classification).requires_grad_()
        (slope,) = torch.autograd.grad(rankloss.harmonic_loss(c, localization).sum(), c)
        axes.plot(localization, slope, line, color=colour, label=f"classification loss {classification:g}")
    axes.plot(localization, 1 + torch.exp(-localization), ":", color=theme.negative, label="detach_factors=True")
    axes.axhline(0, color=theme.faint, linewidth=0.8)
    axes.set_xlabel("localization loss of the positive")
    axes.set_ylabel("factor")
    axes.legend()
    return figure


def draw_boxes(theme: Theme) -> Figure:
    """A box that moves away from its twin: loss, and how hard it is pulled back."""
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "IoU": rankloss.box_iou_loss,
        "GIoU": rankloss.generalized_box_iou_loss,
        "DIoU": rankloss.distance_box_iou_loss,
        "harmonic IoU": rankloss.harmonic_iou_loss,
    }
    shift = torch.linspace(0.01, 2.5, 250).double().requires_grad_()
    target = torch.tensor([0.0, 0.0, 1.0, 1.0]).double().expand(len(shift), 4)
    boxes = target + torch.stack([shift, torch.zeros_like(shift)] * 2, -1)
    figure, (value, pull) = plt.subplots(2, 1, figsize=(6, 5), layout="constrained", sharex=True)
    for (name, loss), line, colour in zip(
        losses.items(), ("-", "--", "-.", ":"), (*theme.series, theme.ink), strict=True
    ):
        found = loss(boxes, target)
        (slope,) = torch.autograd.grad(found.sum(), shift, retain_graph=True)
        value.plot(shift.detach(), found.detach(), line, color=colour, label=name)
        pull.plot(shift.detach(), slope, line, color=colour)
    value.set_ylabel("loss")
    value.legend()
    pull.set_ylabel("derivative")
    pull.set_xlabel("distance of the boxes, in widths")
    return figure


def descend(criterion: rankloss.ALRPLoss | rankloss.RankSortLoss) -> tuple[list[list[float]], list[float]]:
    """Parts of the loss and the weight of the boxes, while the scene is trained by plain gradient descent."""
    torch.manual_seed(0)
    logits = LOGITS.clone().requires_grad_()
    target = torch.tensor([0.0, 0.0, 1.0, 1.0]).double().expand(P, 4)
    boxes = (target + 0.25 * torch.randn(P, 4).double()).requires_grad_()
    parts, weights = [], []
    for step in range(1, STEPS + 1):
        found = criterion(logits, TARGETS, pred_boxes=boxes, target_boxes=target)
        grads = torch.autograd.grad(sum(found), (logits, boxes))
        with torch.no_grad():
            logits -= 0.5 * grads[0]
            boxes -= 0.02 * grads[1]
        parts.append([part.item() for part in found])
        if isinstance(criterion, rankloss.RankSortLoss):
            weights.append(criterion.box_weight.item())
            continue
        weights.append(criterion.localization_weight.item())
        if step % EPOCH == 0:
            criterion.end_epoch()
    return parts, weights


def draw_balance(theme: Theme, criterion: type[rankloss.ALRPLoss | rankloss.RankSortLoss]) -> Figure:
    """Class and box parts before and after the weight, by epoch (aLRP) or by step (Rank & Sort)."""
    by_epoch = criterion is rankloss.ALRPLoss
    parts, weights = descend(rankloss.ALRPLoss(initial_weight=5.0) if by_epoch else rankloss.RankSortLoss())
    scores, box = [sum(part[:-1]) for part in parts], [part[-1] for part in parts]
    plain = [value / weight for value, weight in zip(box, weights, strict=True)]
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    axes.plot(scores, color=theme.series[0], linewidth=3, label="classification" if by_epoch else "ranking + sorting")
    axes.plot(plain, ":", color=theme.series[2], label="boxes, plain")
    axes.plot(box, "--", color=theme.series[1], label="boxes, weighted")
    axes.set_xlabel(f"step of training; an epoch is {EPOCH} of them" if by_epoch else "step of training")
    axes.set_ylabel("part of the loss")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure

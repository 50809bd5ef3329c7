"""Ultralytics' YOLO detectors trained with a ranking loss in place of binary cross-entropy.

    model = YOLO("yolov8n.yaml")
    use_loss(model, rankloss.RankSortLoss())
    model.train(data="coco8.yaml")

Assignment and box losses stay those of the criterion, as do all classes: a checkpoint holds nothing of this package and
loads without it. Needs ultralytics, which the extra ``ultralytics`` brings.
"""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.nn.modules import Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.torch_utils import unwrap_model

from .. import APLoss, DRLoss, IoUBalancedBCELoss, IoUBalancedFocalLoss, RankSortLoss
from ..checks import check_number

ClassLoss = Callable[[Tensor, Tensor], Tensor]
_LOSSES = (APLoss, DRLoss, RankSortLoss, IoUBalancedFocalLoss, IoUBalancedBCELoss)


def use_loss(model: YOLO, loss: nn.Module | ClassLoss, prior: float = 0.1) -> YOLO:
    """Train a YOLO detector with another classification loss, from the next call of its `train` on.

    Args:
        model: a `YOLO` for detection; a callback is added to it, which reaches the processes of DDP too. A checkpoint
            does not hold it: call `use_loss` again before ``train(resume=True)``.
        loss: `APLoss`, `DRLoss`, `RankSortLoss`, `IoUBalancedFocalLoss` or `IoUBalancedBCELoss`; or a function from
            scores (logits, [B, A, C]) and targets (of the same shape: a matched anchor's quality in its class, 0
            elsewhere) to a scalar.
        prior: the score of every anchor before training, in (0, 1), for classes that are not pretrained. Ultralytics
            starts at 1e-5 (80 classes, stride 8) and lets its own loss find the level; a ranking loss fixes the order
            of scores alone, and validation drops what is below 0.001.

    Returns:
        `model`.

    Raises:
        TypeError: another kind of model or loss.
        ValueError: a `prior` out of range; in `train`, a `cls_pw` other than 0: a ranking has no weights of classes.
    """
    detector = getattr(model, "model", None)
    if not isinstance(model, YOLO) or type(detector) is not DetectionModel:
        raise TypeError(f"model must be a YOLO for detection; got {type(model).__name__} of {type(detector).__name__}")
    if not (isinstance(loss, _LOSSES) or (callable(loss) and not isinstance(loss, (nn.Module, type)))):
        names = ", ".join(kind.__name__ for kind in _LOSSES)
        raise TypeError(f"loss must be one of {names}, or a function of scores and targets; got {type(loss).__name__}")
    check_number("prior", prior, 0, 1, low_open=True, high_open=True)
    callbacks = model.callbacks["on_pretrain_routine_end"]
    callbacks[:] = [callback for callback in callbacks if not isinstance(callback, _Callback)]  # an earlier loss
    callbacks.append(_Callback(loss, prior))
    return model


class _Callback:
    """Changes the criteria once the trainer has made its models; a class, so that DDP can send it to its processes."""

    def __init__(self, loss: nn.Module | ClassLoss, prior: float) -> None:
        self.loss = loss
        self.prior = prior

    def __call__(self, trainer: Any) -> None:
        # The averaged model is validated, with a criterion of its own.
        for model in (unwrap_model(trainer.model), trainer.ema.ema):
            if getattr(model, "criterion", None) is None:  # a resumed one knows its epoch
                model.criterion = model.init_criterion()
            replace_class_loss(model.criterion, self.loss)
            set_prior(model.model[-1], self.prior)


def replace_class_loss(criterion: Any, loss: nn.Module | ClassLoss) -> None:
    """Change a criterion in place, both parts of one that has two (YOLOv10, YOLO26); see `use_loss`."""
    parts = [getattr(criterion, name) for name in ("one2many", "one2one") if hasattr(criterion, name)] or [criterion]
    for part in parts:
        if not isinstance(part, v8DetectionLoss):
            raise TypeError(f"the criterion must be of v8DetectionLoss; got {type(part).__name__}")
        if part.class_weights is not None:
            raise ValueError("cls_pw must be 0: weights of the classes do not fit a loss of all classes at once")
        part.bce = _Bce(loss)


def set_prior(head: Detect, prior: float) -> None:
    """Give `prior` to the classes whose biases are still those that Ultralytics starts from."""
    fresh = deepcopy(head)
    fresh.bias_init()
    for bias, start in zip(_class_biases(head), _class_biases(fresh), strict=True):
        bias.data[bias == start] = math.log(prior / (1 - prior))


def _class_biases(head: Detect) -> Iterator[Tensor]:
    for branch in (head.cv3, getattr(head, "one2one_cv3", None)):
        for level in branch or ():
            yield level[-1].bias


class _Bce:
    """What a criterion calls as `bce`, and then divides by the sum of the targets."""

    def __init__(self, loss: nn.Module | ClassLoss) -> None:
        self.loss = loss

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        return class_loss(self.loss, scores, targets) * targets.sum(dtype=torch.float32).clamp(min=1)


def class_loss(loss: nn.Module | ClassLoss, scores: Tensor, targets: Tensor) -> Tensor:
    """The loss of scores [B, A, C] with targets of the same shape: a matched anchor's quality in its class, else 0."""
    if isinstance(loss, RankSortLoss):
        ranking, sorting = loss(scores, targets)
        return ranking + sorting
    if isinstance(loss, (IoUBalancedFocalLoss, IoUBalancedBCELoss)):
        return loss(scores, targets, iou=targets.amax(-1))
    value = loss(scores, targets)
    if not isinstance(value, Tensor) or value.dim():
        raise TypeError(
            f"the loss must return a scalar; got {tuple(getattr(value, 'shape', ())) or type(value).__name__}"
        )
    return value

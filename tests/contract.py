"""The table that test_contract*.py go through: a row for every public loss, and the arguments that the rows name.

A new loss joins the contract by one row. A row lists hyper-parameters with values that are not the defaults; what is
forgotten there, or in `allowed`, is found by the test of the table.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import triton_rankloss as rankloss

NUM_CLASSES = 3
STATES = ("mixed", "no positives", "no negatives", "one positive", "all ignored")
EMPTY = ((2, 0), (0, 8), (0, 0))  # images, anchors

AT_LEAST_0 = (">= 0", (-1, -0.1))  # (what errors say it must be, values it must not be)
ABOVE_0 = ("> 0", (-1, 0, 0.0))
UNIT = (">= 0 and <= 1", (-0.1, 1.5))


@dataclass(frozen=True)
class Loss:
    """A row: a public function, with `fixed` options where it is several losses in one."""

    function: Callable[..., Any]
    module: type[nn.Module]
    arguments: tuple[str, ...]  # the tensors it takes, as `make_inputs` names them
    leaves: tuple[str, ...]  # those that gradients reach
    allowed: dict[str, tuple]  # numbers among its options, and their ranges
    options: dict[str, Any]  # every hyper-parameter of the module, at a value that is not the default
    fixed: dict[str, Any] = field(default_factory=dict)
    only_module: dict[str, Any] = field(default_factory=dict)  # what makes the module the function
    dtype_from: tuple[str, ...] = ("logits",)  # float64 in one of these is float64 out
    large: float = 1e30  # infinite logits count as this; above the range of the dtype, as its largest number
    error_driven: bool = False
    roundings: int = 1  # of a gradient: a sum of rounded ones has more than one

    def __call__(self, **arguments: Any) -> Any:
        return self.function(**{**self.fixed, **arguments})

    def __str__(self) -> str:
        return "-".join([self.function.__name__, *self.fixed.values()])

    @property
    def parameters(self) -> list[str]:
        return list(inspect.signature(self.function).parameters)

    @property
    def takes_logits(self) -> bool:
        return "logits" in self.arguments

    @property
    def is_softmax(self) -> bool:
        return "labels" in self.arguments or "softmax" in self.fixed.values()

    @property
    def has_dense_targets(self) -> bool:
        return self.takes_logits and not self.is_softmax

    @property
    def takes_iou_per_anchor(self) -> bool:
        return self.takes_logits and "iou" in self.arguments

    @property
    def is_scalar(self) -> bool:
        """By default; otherwise there is a value for each positive, or pair of boxes."""
        return (self.takes_logits and "reduction" not in self.parameters) or "avg_factor" in self.parameters

    @property
    def targets(self) -> str:
        return "labels" if "labels" in self.arguments else "targets"


def ranking(function, module, values=(), leaves=(), allowed=None, options=None, **rest):
    return Loss(
        function, module, ("logits", "targets", *values), ("logits", *leaves),
        {"delta": AT_LEAST_0} | (allowed or {}), {"delta": 0.7} | (options or {}), error_driven=True, large=6e4, **rest,
    )  # fmt: skip


def balanced(function, module, targets="targets", allowed=None, options=None):
    return Loss(
        function, module, ("logits", targets, "iou"), ("logits",),
        {"eta": AT_LEAST_0} | (allowed or {}), {"eta": 2.0} | (options or {}),
    )  # fmt: skip


def detection(kind):
    return Loss(
        rankloss.harmonic_detection_loss, rankloss.HarmonicDetectionLoss,
        ("logits", "targets", "pred_boxes", "target_boxes", "pred_deltas", "target_deltas"),
        ("logits", "pred_boxes", "pred_deltas"),
        {"focal_alpha": UNIT, "focal_gamma": AT_LEAST_0, "beta": AT_LEAST_0, "iou_weight": AT_LEAST_0,
         "iou_gamma": UNIT, "task_contrastive_weight": AT_LEAST_0, "task_contrastive_margin": UNIT, "eps": AT_LEAST_0},
        {"focal_alpha": 0.4, "focal_gamma": 1.5, "background": 3, "beta": 0.3, "iou_weight": 0.5, "iou_gamma": 0.6,
         "detach_factors": True, "task_contrastive_weight": 0.5, "task_contrastive_margin": 0.1, "eps": 1e-3},
        fixed={"classification": kind},
    )  # fmt: skip


def task_contrastive(activation):
    return Loss(
        rankloss.task_contrastive_loss, rankloss.TaskContrastiveLoss, ("logits", "targets", "iou"), ("logits", "iou"),
        {"margin": UNIT}, {"margin": 0.1, "background": 3, "reduction": "mean"},
        fixed={"activation": activation}, dtype_from=("logits", "iou"),
    )  # fmt: skip


def of_boxes(function, module, names=("boxes1", "boxes2"), allowed=None, options=None):
    return Loss(
        function, module, names, names, {"eps": AT_LEAST_0} | (allowed or {}),
        {"reduction": "mean", "eps": 1e-3} | (options or {}), dtype_from=names,
    )  # fmt: skip


LOSSES = (
    ranking(rankloss.ap_loss, rankloss.APLoss, options={"interpolate": False, "per_image": True}),
    ranking(rankloss.alrp_loss, rankloss.ALRPLoss, ["localization_errors"], ["localization_errors"],
            {"eps": AT_LEAST_0}, {"eps": 1e-3}, only_module={"initial_weight": 1.0}),
    ranking(rankloss.rank_sort_loss, rankloss.RankSortLoss, ["iou"], (), {"eps": AT_LEAST_0},
            {"eps": 1e-3, "per_image": True}),
    Loss(rankloss.dr_loss, rankloss.DRLoss, ("logits", "targets"), ("logits",),
         {"margin": AT_LEAST_0, "pos_lambda": ABOVE_0, "neg_lambda": ABOVE_0, "L": ABOVE_0, "tau": ABOVE_0},
         {"margin": 0.25, "pos_lambda": 2.0, "neg_lambda": 0.5, "L": 3.0, "tau": 2.0, "per_image": True}, large=100.0,
         roundings=2),  # in float32 the rounding of p, 6e-8, grows by 1 / neg_lambda = 20 in exp(p / neg_lambda)
    balanced(
        rankloss.iou_balanced_focal_loss,
        rankloss.IoUBalancedFocalLoss,
        allowed={"alpha": UNIT, "gamma": AT_LEAST_0},
             options={"alpha": 0.5, "gamma": 1.0}),
    balanced(rankloss.iou_balanced_bce_loss, rankloss.IoUBalancedBCELoss),
    balanced(rankloss.iou_balanced_cross_entropy_loss, rankloss.IoUBalancedCrossEntropyLoss, "labels",
             options={"background": 3}),
    Loss(rankloss.iou_balanced_smooth_l1_loss, rankloss.IoUBalancedSmoothL1Loss, ("pred", "target", "iou"),
         ("pred", "target"), {"lambda_": AT_LEAST_0, "beta": AT_LEAST_0, "loss_weight": AT_LEAST_0},
         {"lambda_": 2.0, "beta": 0.5, "loss_weight": 3.0}, dtype_from=("pred", "target")),
    Loss(rankloss.harmonic_loss, rankloss.HarmonicLoss, ("classification_losses", "localization_losses"),
         ("classification_losses", "localization_losses"), {}, {"detach_factors": True},
         dtype_from=("classification_losses", "localization_losses")),
    *map(detection, ("bce", "focal", "softmax")),
    of_boxes(rankloss.harmonic_iou_loss, rankloss.HarmonicIoULoss, ("pred_boxes", "target_boxes"), {"gamma": UNIT},
             {"gamma": 0.5}),
    *map(task_contrastive, ("sigmoid", "softmax")),
    of_boxes(rankloss.box_iou_loss, rankloss.BoxIoULoss),
    of_boxes(rankloss.generalized_box_iou_loss, rankloss.GeneralizedBoxIoULoss),
    of_boxes(rankloss.distance_box_iou_loss, rankloss.DistanceBoxIoULoss),
    of_boxes(rankloss.complete_box_iou_loss, rankloss.CompleteBoxIoULoss),
)  # fmt: skip


def make_labels(state: str) -> Tensor:
    """Labels [2, 8]: 0 to 2 foreground, 3 background, -1 ignored."""
    labels = torch.full((2, 8), NUM_CLASSES if state != "all ignored" else -1)
    if state in ("mixed", "no negatives"):
        labels = torch.tensor([[0, 3, 2, -1, 3, 1, 0, -1], [3, 3, 2, 2, -1, 3, 3, 3]])
    if state == "no negatives":
        labels[labels == NUM_CLASSES] = -1
    if state == "one positive":
        labels[0, 4:6] = torch.tensor([-1, 1])
    return labels


def make_inputs(
    loss: Loss, state: str = "mixed", labels: Tensor | None = None, device: Any = "cpu"
) -> dict[str, Tensor]:
    """The tensors that the row names, in float64; positives, P of them, in row-major order."""
    labels = make_labels(state) if labels is None else labels
    num_classes = 1 if state == "no negatives" and not loss.is_softmax else NUM_CLASSES
    labels = labels.clamp(max=num_classes) if num_classes == NUM_CLASSES else labels.clamp(max=0)
    num_positives = int(((labels >= 0) & (labels < num_classes)).sum())
    corner = 6 * torch.rand(num_positives, 2)
    box = torch.cat([corner, corner + 1 + 4 * torch.rand(num_positives, 2)], 1)

    def near() -> Tensor:
        return box + torch.rand(num_positives, 4) - 0.5

    made = {
        "logits": 2 * torch.randn(*labels.shape, num_classes + loss.is_softmax),
        "targets": labels,
        "labels": labels,
        "iou": 0.1 + 0.9 * torch.rand(num_positives),
        "localization_errors": torch.rand(num_positives),
        "classification_losses": 3 * torch.rand(num_positives),
        "localization_losses": 2 * torch.rand(num_positives),
        **{name: near() for name in ("boxes1", "boxes2", "pred_boxes", "target_boxes")},
        **{name: torch.randn(num_positives, 4) for name in ("pred", "target", "pred_deltas", "target_deltas")},
    }
    named = {name: made[name].to(device) for name in loss.arguments}
    return {name: value.double() if value.is_floating_point() else value for name, value in named.items()}


def to_dense(labels: Tensor) -> Tensor:
    """1 positive, 0 negative, -1 ignored, [..., NUM_CLASSES]."""
    dense = one_hot(labels.clamp(min=0), NUM_CLASSES + 1)[..., :NUM_CLASSES]
    return dense.masked_fill((labels < 0).unsqueeze(-1), -1)


def evaluate(loss: Loss, inputs: dict[str, Any], *, alike: bool = False, wrap: Any = None, **options: Any):
    """(outputs, gradients of the leaves), for upstream gradients that differ, or are `alike`: 1, expanded."""
    leaves = [inputs[name].detach().requires_grad_() for name in loss.leaves]

    def call(*leaves: Tensor) -> tuple[Tensor, ...]:
        outputs = loss(**{**inputs, **dict(zip(loss.leaves, leaves)), **options})
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    outputs = (wrap(call) if wrap else call)(*leaves)
    if alike:
        total_of(outputs).backward()
    else:
        torch.autograd.backward(outputs, [_ramp(output) / (k + 1) for k, output in enumerate(outputs)])
    return [output.detach() for output in outputs], [leaf.grad for leaf in leaves]


def total_of(outputs: Any) -> Tensor:
    """The sum of everything that a loss returned."""
    return outputs.sum() if isinstance(outputs, Tensor) else sum(output.sum() for output in outputs)


def _ramp(like: Tensor) -> Tensor:
    return torch.linspace(1, 0.5, like.numel(), dtype=like.dtype, device=like.device).view(like.shape)


def each(condition=lambda loss: True):
    return pytest.mark.parametrize("loss", [loss for loss in LOSSES if condition(loss)], ids=str)


def scopes(loss):
    """Options under which the whole batch, and each image, is ranked."""
    return ({}, {"per_image": True}) if "per_image" in loss.parameters else ({},)


def foreground(loss, inputs):
    """Which anchors are positive, bool."""
    labels = inputs[loss.targets]
    return (labels >= 0) & (labels < inputs["logits"].shape[-1] - loss.is_softmax)


def per_anchor(loss, inputs):
    """The same inputs, with the IoU of every anchor instead of every positive; NaN at all but positives."""
    anchors = foreground(loss, inputs)
    iou = torch.full(anchors.shape, torch.nan, dtype=inputs["iou"].dtype, device=anchors.device)
    iou[anchors] = inputs["iou"]
    return inputs | {"iou": iou}


def forms(loss, inputs):
    return [inputs, per_anchor(loss, inputs)] if loss.takes_iou_per_anchor else [inputs]


def to_dtype(inputs, dtype, names=None):
    return {
        name: value.to(dtype) if value.is_floating_point() and (names is None or name in names) else value
        for name, value in inputs.items()
    }

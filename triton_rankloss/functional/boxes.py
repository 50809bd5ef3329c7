"""Box losses: IoU, GIoU, DIoU, CIoU."""

from torch import Tensor

from ..checks import check_boxes, check_choice, check_float_tensor, check_number
from ..ops import boxes as ops


def box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    r"""One minus the IoU of two boxes, :math:`1 - I / (U + \mathrm{eps})`, with intersection I and union U.

    Args:
        boxes1: (x1, y1, x2, y2), [..., 4], any floating dtype, any unit that both share.
        boxes2: the boxes they are compared with, of the same shape; the loss is symmetric.
        reduction: "none", "mean" or "sum".
        eps: added to the denominators, in squared units of the boxes.

    Returns:
        [...], or with a reduction a scalar: float64 if either input is, else float32. The mean of no boxes is 0,
        still connected to the graph.

    Raises:
        TypeError, ValueError: an argument of wrong type, dtype, shape, device or range; the message names it.
        RuntimeError: in a second backward through the gradient.

    A box with x2 < x1 or y2 < y1 is empty, with area 0. Boxes that do not intersect, or only touch, have loss 1 and
    gradient 0. Where ends coincide, the gradient is the mean of its one-sided values, as in `torch.maximum`: 0 where
    `boxes1` equals `boxes2`. NaN in, NaN out.

    Named and defined as its relatives in torchvision.ops, which has no loss for the plain IoU.
    """
    return _box_loss(boxes1, boxes2, "iou", reduction, eps)


def generalized_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    r"""One minus the generalized IoU, whose gradient does not vanish for boxes that do not intersect.

    .. math:: 1 - \frac{I}{U + \mathrm{eps}} + \frac{C - U}{C + \mathrm{eps}}

    with intersection I, union U and C the area of the smallest box around both. Between 0 and 2.

    Arguments, result, errors and edge cases are those of :func:`box_iou_loss`, but for boxes that do not intersect.

    Source: Rezatofighi et al., CVPR 2019, arXiv 1902.09630, algorithm 2. Values are those of
    ``torchvision.ops.generalized_box_iou_loss``, except that there boxes with x2 < x1 have negative areas.
    """
    return _box_loss(boxes1, boxes2, "giou", reduction, eps)


def distance_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    r"""One minus the IoU, plus the distance of the centres.

    .. math:: 1 - \frac{I}{U + \mathrm{eps}} + \frac{d}{D + \mathrm{eps}}

    with intersection I, union U, d the squared distance of the centres and D the squared diagonal of the smallest box
    around both. Between 0 and 2.

    Arguments, result, errors and edge cases are those of :func:`box_iou_loss`, but for boxes that do not intersect.

    Source: Zheng et al., AAAI 2020, arXiv 1911.08287, equation 7. Values are those of
    ``torchvision.ops.distance_box_iou_loss``, except that there boxes with x2 < x1 have negative areas.
    """
    return _box_loss(boxes1, boxes2, "diou", reduction, eps)


def complete_box_iou_loss(boxes1: Tensor, boxes2: Tensor, reduction: str = "none", eps: float = 1e-7) -> Tensor:
    r"""One minus the IoU, plus the distance of the centres, plus the difference of the aspect ratios.

    .. math:: 1 - \frac{I}{U + \mathrm{eps}} + \frac{d}{D + \mathrm{eps}} + \alpha v, \quad
        v = \frac{4}{\pi^2} \Bigl(\arctan \frac{w_2}{h_2} - \arctan \frac{w_1}{h_1}\Bigr)^2, \quad
        \alpha = \frac{v}{1 - \mathrm{IoU} + v + \mathrm{eps}}

    with the terms of :func:`distance_box_iou_loss`; :math:`\alpha` is a constant in differentiation.

    Arguments, result, errors and edge cases are those of :func:`box_iou_loss`, but for boxes that do not intersect.
    The angle of a box without height is a right one, that of a point 0, with gradient 0.

    Source: Zheng et al., AAAI 2020, arXiv 1911.08287, equations 8 to 11. Values are those of
    ``torchvision.ops.complete_box_iou_loss``, except that there a point makes the loss NaN, and boxes with x2 < x1 have
    negative areas.
    """
    return _box_loss(boxes1, boxes2, "ciou", reduction, eps)


def iou_of(
    iou: Tensor | None, pred_boxes: Tensor | None, target_boxes: Tensor | None, like: Tensor
) -> tuple[Tensor, str]:
    """(IoU, detached; what errors call it), as it was given or of the boxes [..., 4], on the device of `like`."""
    if iou is not None and pred_boxes is None and target_boxes is None:
        check_float_tensor("iou", iou, like=like)
        return iou.detach(), "iou"
    if iou is not None or pred_boxes is None or target_boxes is None:
        arguments = {"iou": iou, "pred_boxes": pred_boxes, "target_boxes": target_boxes}
        given = " and ".join(name for name, value in arguments.items() if value is not None)
        raise ValueError(f"give either iou, or pred_boxes and target_boxes; got {given or 'none of them'}")
    check_boxes("pred_boxes", pred_boxes, like=like)
    check_boxes("target_boxes", target_boxes, like=like, shape=pred_boxes.shape)
    return 1 - box_iou_loss(pred_boxes.detach(), target_boxes.detach()), "the IoU of pred_boxes and target_boxes"


def check_parameters(reduction: str, eps: float) -> None:
    """Errors that name the argument."""
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    check_number("eps", eps, 0)


def reduce(losses: Tensor, reduction: str) -> Tensor:
    """The mean of nothing is 0."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / max(1, losses.numel()) if reduction == "mean" else total


def _box_loss(boxes1: Tensor, boxes2: Tensor, kind: str, reduction: str, eps: float) -> Tensor:
    check_boxes("boxes1", boxes1)
    check_boxes("boxes2", boxes2, like=boxes1, shape=boxes1.shape)
    check_parameters(reduction, eps)
    return reduce(ops.box_loss(boxes1, boxes2, kind, 0.0, eps), reduction)

"""The losses as their papers write them, over all pairs: what the fuzz expects. Nothing here comes from the package.

Ranking losses take the scores of one scope in float64, and say of each number they return how far rounding may move it:
its scale, in units of the machine's epsilon. All others are formulas in the dtype of their arguments, whose gradient is
autograd's; evaluated in float32 too, they show what rounding costs them.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

IOU_EPS = 1e-7


class Unspecified(Exception):  # noqa: N818 - no error
    """Rounding alone decides what this call returns."""


class Part(NamedTuple):
    """One output of a ranking loss and what it moves, each with its scale."""

    value: tuple[Tensor, Tensor]
    positives: tuple[Tensor, Tensor]  # [P]
    negatives: tuple[Tensor, Tensor]  # [N]
    values: tuple[Tensor, Tensor]  # [P]: the number that is given for each positive


def difference(x: Tensor, p: Tensor) -> Tensor:
    """x_j - p_i, [P, N]; equal infinities tie."""
    return torch.where(x[None, :] == p[:, None], 0, x[None, :] - p[:, None])


def step(x: Tensor, delta: float) -> Tensor:
    if delta == 0:
        return torch.where(x.isnan(), x, (x >= 0).double())
    return (x / (2 * delta) + 0.5).clamp(0, 1)


def nothing(like: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(like), torch.zeros_like(like)


def ap(p: Tensor, n: Tensor, values: Tensor, delta: float = 1.0, interpolate: bool = True) -> list[Part]:
    above, one = step(difference(n, p), delta), torch.ones_like(p) / len(p)
    a, b = 1 + step(difference(p, p), delta).fill_diagonal_(0).sum(1), above.sum(1)
    precision = a / (a + b)
    q = torch.where(p[None, :] <= p[:, None], precision[None, :], 0).amax(1) if interpolate else precision
    weights = torch.where(b > 0, (1 - q) / b, 0) * one
    on_negatives = weights @ above, ((weights + one) @ torch.ones_like(above))
    return [Part(((1 - q) @ one, one.sum()), (-(1 - q) * one, one), on_negatives, nothing(values))]


def alrp(p: Tensor, n: Tensor, e: Tensor, delta: float = 1.0, eps: float = 1e-5) -> list[Part]:
    x, one = difference(n, p), torch.ones_like(p) / len(p)
    above, among = step(x, delta), step(difference(p, p), delta).fill_diagonal_(0)
    b, rank = above.sum(1), 1 + among.sum(1) + above.sum(1)
    slanted = (x.abs() <= delta * (1 + 1e-6)).double().sum(1)  # H of these is rounded at all
    if bool(((b > 0) & ((b - eps).abs() <= 1e-6 * (eps + slanted))).any()):
        raise Unspecified("b_i is eps but for rounding")
    f = torch.where(b > eps, (b + among @ e) / rank, 0)
    weights = torch.where(b > eps, f / b, 0) * one
    # Count and transport round H apart: the share H / b of a small b has few digits.
    of_negatives = ((weights * (1 + slanted))[:, None] + one[:, None]).sum(0).expand_as(n)
    hard = (p[None, :] >= p[:, None]).double()
    carried = (hard / rank[:, None]).T @ one
    localization, most = (hard @ e / rank) @ one, (hard @ e.abs() / rank) @ one
    f_scale = (1 + among @ e.abs()) * one
    classification = Part(
        ((b / rank) @ one, one.sum()), (-f * one, f_scale), (weights @ above, of_negatives), nothing(e)
    )
    return [classification, Part((localization, most), nothing(p), nothing(n), (carried, carried))]


def rank_sort(p: Tensor, n: Tensor, t: Tensor, delta: float = 0.5, eps: float = 1e-10) -> list[Part]:
    above, among, one = step(difference(n, p), delta), step(difference(p, p), delta), torch.ones_like(p) / len(p)
    b, r = above.sum(1), among.sum(1)
    ranking = b / (r + b)
    weights = torch.where(b > eps, ranking / b, 0) * one
    on_negatives = weights @ above, ((weights + one) @ torch.ones_like(above))
    missorted = torch.where(t[None, :] < t[:, None], among, 0)
    in_order = among - missorted
    sorting = among @ (1 - t) / r - in_order @ (1 - t) / in_order.sum(1)
    m = missorted.sum(1)
    pushed, down = torch.where(m > 0, sorting, 0) * one, torch.where(m > 0, 1 / m, 0)[:, None] * missorted
    moved = pushed @ down - pushed
    updated = -torch.where(b > eps, ranking, 0) * one
    sorting_scale = one + one @ (missorted > 0).double()
    return [
        Part((ranking @ one, one.sum()), (updated, one), on_negatives, nothing(t)),
        Part((sorting @ one, one.sum()), (moved, sorting_scale), nothing(n), nothing(t)),
    ]


def dr(
    positives: Tensor,
    negatives: Tensor,
    margin: float = 0.5,
    pos_lambda: float = 1.0,
    neg_lambda: float = 0.1 / math.log(3.5),
    L: float = 6.0,
    tau: float = 4.0,
) -> Tensor:
    if len(positives) + len(negatives) == 0:
        return positives.sum()
    p, n = logsigmoid(positives).exp(), logsigmoid(negatives).exp()  # whose derivative keeps the digits of 1 - p
    hard_positive = (torch.softmax(-p / pos_lambda, 0) * p).sum() if len(p) else 1.0
    hard_negative = (torch.softmax(n / neg_lambda, 0) * n).sum()
    excess = L * (hard_negative - hard_positive + margin)
    return tau / L * torch.logaddexp(excess, torch.zeros_like(excess))


def focal(score: Tensor, gamma: float) -> Tensor:
    """-(1 - p)^gamma log p; a power below 1 has no derivative at 0, where the exponential form has."""
    factor = (-score).sigmoid() ** gamma if gamma >= 1 else (gamma * logsigmoid(-score)).exp()
    return factor * -logsigmoid(score)


def balanced(of_positives: Tensor, of_negatives: Tensor, u: Tensor, eta: float, avg_factor: float) -> Tensor:
    weights = u.detach().clamp(min=0) ** eta
    z = of_positives.sum() / ((weights * of_positives).sum() + 1e-6)
    return (of_negatives.sum() + (z * weights).detach() @ of_positives) / avg_factor


def smooth_l1(pred: Tensor, target: Tensor, beta: float) -> Tensor:
    """Of each row."""
    d = (pred - target).abs()
    square = d.square() / (2 * beta) if beta > 0 else d
    return torch.where(d < beta, square, d - beta / 2).sum(1)


def harmonic(c: Tensor, l: Tensor, detach_factors: bool = False) -> Tensor:  # noqa: E741 - the paper's letter
    of_c, of_l = 1 + (-l).exp(), 1 + (-c).exp()
    return (of_c.detach() * c + of_l.detach() * l) if detach_factors else of_c * c + of_l * l


def task_contrastive(rows: Tensor, channels: Tensor, u: Tensor, margin: float = 0.2, softmax: bool = False) -> Tensor:
    """Of each positive, whose anchor has the logits `rows` [P, C]."""
    log_p, log_rest = (rows.log_softmax(1), None) if softmax else (logsigmoid(rows), logsigmoid(-rows))
    p = log_p.exp()
    entropy = -(p * log_p).sum(1)
    if log_rest is not None:
        entropy = entropy - (log_rest.exp() * log_rest).sum(1)
    distance = (p.gather(1, channels[:, None]).squeeze(1) - u).abs()
    if bool(((distance - margin).abs() < 1e-5).any()):
        raise Unspecified("a distance is the margin but for rounding")
    return (distance - margin).clamp(min=0) * (-entropy).sigmoid()


def box_loss(a: Tensor, b: Tensor, kind: str, gamma: float = 0.8, eps: float = IOU_EPS) -> Tensor:
    (ax, ay, ax2, ay2), (bx, by, bx2, by2) = a.unbind(-1), b.unbind(-1)
    aw, ah, bw, bh = ((end - start).clamp(min=0) for start, end in ((ax, ax2), (ay, ay2), (bx, bx2), (by, by2)))
    inner_w = (torch.minimum(ax2, bx2) - torch.maximum(ax, bx)).relu()
    inner_h = (torch.minimum(ay2, by2) - torch.maximum(ay, by)).relu()
    inner = inner_w * inner_h
    union = aw * ah + bw * bh - inner
    iou = inner / (union + eps)
    if kind == "harmonic_iou":
        return (1 + iou) ** gamma * (1 - iou)
    if kind in ("box_iou", "iou"):
        return 1 - iou if kind == "box_iou" else iou
    outer_w = torch.stack([ax, ax2, bx, bx2]).amax(0) - torch.stack([ax, ax2, bx, bx2]).amin(0)
    outer_h = torch.stack([ay, ay2, by, by2]).amax(0) - torch.stack([ay, ay2, by, by2]).amin(0)
    if kind == "generalized_box_iou":
        return 1 - iou + (outer_w * outer_h - union) / (outer_w * outer_h + eps)
    apart = ((ax + ax2 - bx - bx2) / 2).square() + ((ay + ay2 - by - by2) / 2).square()
    distance = 1 - iou + apart / (outer_w.square() + outer_h.square() + eps)
    if kind == "distance_box_iou":
        return distance

    def angle(w: Tensor, h: Tensor) -> Tensor:
        is_point = (w == 0) & (h == 0)
        return torch.atan2(w.masked_fill(is_point, 0), h.masked_fill(is_point, 1))

    v = 4 / math.pi**2 * (angle(bw, bh) - angle(aw, ah)).square()
    return distance + (v / (1 - iou + v + eps)).detach() * v

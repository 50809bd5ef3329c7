"""The reference against literal double loops in Python floats, over a handful of positives and negatives.

Those of DR Loss, of the harmonic losses and of the box losses stand in the files that test these.
"""

import math

import pytest
import torch
from cases import INTERPRETED, assert_close

from triton_rankloss.reference import alrp, ap, iou_balanced, rank_sort

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the reference alone, which the first pass has tested")

P, N = [0.5, -0.25, 2.0, 0.5], [0.625, -3.0, 0.5, 1.25, 4.0]  # two positives and a negative of one score
ERRORS = [0.25, 0.75, 0.5, 1.0]
IOU = [0.75, 0.5, 0.25, 0.75]
with_delta = pytest.mark.parametrize("delta", [0.0, 0.3, 1.0])


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def step(x, delta):
    if delta == 0:
        return 1.0 if x >= 0 else 0.0
    return min(max(x / (2 * delta) + 0.5, 0.0), 1.0)


def counts(delta):
    """(a_i, with 1 for the positive itself; b_i)."""
    among = [1 + sum(step(q - p, delta) for k, q in enumerate(P) if k != i) for i, p in enumerate(P)]
    return among, [sum(step(n - p, delta) for n in N) for p in P]


def carried(shares, delta):
    """What the negatives receive where each positive hands out its share in proportion to H."""
    _, above = counts(delta)
    return [sum(s * step(n - p, delta) / b for s, b, p in zip(shares, above, P) if b > 0) for n in N]


def check(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, tensor(other), atol=1e-15)


@with_delta
@pytest.mark.parametrize("interpolate", [True, False])
def test_ap_loss(delta, interpolate):
    precision = [a / (a + b) for a, b in zip(*counts(delta))]
    if interpolate:
        precision = [max(precision[k] for k, q in enumerate(P) if q <= p) for p in P]
    shares = [(1 - q) / 4 for q in precision]
    expected = sum(shares), [-s for s in shares], carried(shares, delta)
    check(ap.ap_loss(tensor(P), tensor(N), delta, interpolate), expected)


@with_delta
def test_alrp_loss(delta):
    shares, classification, localization, of_errors = [], 0.0, 0.0, [0.0] * 4
    for i, (p, a, b) in enumerate(zip(P, *counts(delta))):
        errors_above = sum(step(q - p, delta) * ERRORS[k] for k, q in enumerate(P) if k != i)
        shares.append((b + errors_above) / (a + b) / 4 if b > 1e-5 else 0.0)
        classification += (1 - a / (a + b)) / 4
        for k, q in enumerate(P):
            if q >= p:
                localization += ERRORS[k] / (a + b) / 4
                of_errors[k] += 1 / (a + b) / 4
    expected = classification, localization, [-s for s in shares], carried(shares, delta), of_errors
    check(alrp.alrp_loss(tensor(P), tensor(N), tensor(ERRORS), delta), expected)


@with_delta
def test_rank_sort_loss(delta):
    ranking, sorting, moved = [], 0.0, [0.0] * 4
    for i, (p, b) in enumerate(zip(P, counts(delta)[1])):
        relation = [step(q - p, delta) for q in P]
        ranking.append(b / (sum(relation) + b) / 4)
        in_order = [h if t >= IOU[i] else 0.0 for h, t in zip(relation, IOU)]
        current, target = (sum(h * (1 - t) for h, t in zip(hs, IOU)) / sum(hs) for hs in (relation, in_order))
        sorting += (current - target) / 4
        missorted = [h - o for h, o in zip(relation, in_order)]
        if sum(missorted) > 0:
            moved[i] -= (current - target) / 4
            moved = [m + (current - target) * h / sum(missorted) / 4 for m, h in zip(moved, missorted)]
    expected = sum(ranking), sorting, [-r for r in ranking], carried(ranking, delta), moved
    check(rank_sort.rank_sort_loss(tensor(P), tensor(N), tensor(IOU), delta), expected)


def balanced(terms, slopes, of_negatives, eta=1.5):
    """(sum before avg_factor, gradients of the positives) of positives with these terms and slopes, and IoU."""
    weighted = sum(u**eta * term for u, term in zip(IOU, terms))
    z = sum(terms) / (weighted + 1e-6)
    return z * weighted + sum(of_negatives), [z * u**eta * slope for u, slope in zip(IOU, slopes)]


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.4, 0.5), (None, 0.0)])
def test_iou_balanced_focal_and_bce_loss(alpha, gamma):
    positive, negative = (alpha, 1 - alpha) if alpha else (1, 1)
    missing = [1 / (1 + math.exp(x)) for x in P] + [1 / (1 + math.exp(-x)) for x in N]  # of a negative: p itself
    weights = [positive] * 4 + [negative] * 5
    terms = [-w * q**gamma * math.log(1 - q) for w, q in zip(weights, missing)]
    # The derivative of q^g log(1 - q) in the score, in which q falls: q^g (q - g (1 - q) log(1 - q)), with a sign.
    slopes = [w * q**gamma * (gamma * (1 - q) * math.log(1 - q) - q) for w, q in zip(weights, missing)]
    total, of_positives = balanced(terms[:4], slopes[:4], terms[4:])
    leaves = tensor(P).requires_grad_(), tensor(N).requires_grad_()
    if alpha is None:
        loss = iou_balanced.iou_balanced_bce_loss(*leaves, tensor(IOU), 1.5, 7.0)
    else:
        loss = iou_balanced.iou_balanced_focal_loss(*leaves, tensor(IOU), 1.5, alpha, gamma, 7.0)
    expected = total / 7, [x / 7 for x in of_positives], [-x / 7 for x in slopes[4:]]
    check((loss, *torch.autograd.grad(loss, leaves)), expected)


def test_iou_balanced_cross_entropy_loss():
    rows, labels = [[0.5, -1.0, 2.0], [1.5, 0.0, -0.5], [0.0, 0.25, 1.0]], [0, 1, 2]  # 2 is the background
    probabilities = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in rows]
    terms = [-math.log(p[label]) for p, label in zip(probabilities, labels)]
    total, weights = balanced(terms[:2], [1, 1], terms[2:])
    gradient = [
        [w * (p - (c == label)) / 7 for c, p in enumerate(row)]
        for w, row, label in zip([*weights, 1], probabilities, labels)
    ]
    logits = tensor(rows).requires_grad_()
    arguments = torch.tensor(labels), tensor([*IOU[:2], torch.nan])
    loss = iou_balanced.iou_balanced_cross_entropy_loss(logits, *arguments, 1.5, 2, 7.0)
    check((loss, *torch.autograd.grad(loss, logits)), (total / 7, gradient))


@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_iou_balanced_smooth_l1_loss(beta):
    pred, target = [P, N[:4]], [N[1:], P]
    loss, gradient = 0.0, []
    for row, other, u in zip(pred, target, IOU):
        differences = [a - b for a, b in zip(row, other)]
        terms = [d**2 / (2 * beta) if abs(d) < beta else abs(d) - beta / 2 for d in differences]
        slopes = [d / beta if abs(d) < beta else (d > 0) - (d < 0) for d in differences]
        loss += 3 * u**1.5 * sum(terms) / 7
        gradient.append([3 * u**1.5 * slope / 7 for slope in slopes])
    leaf = tensor(pred).requires_grad_()
    found = iou_balanced.iou_balanced_smooth_l1_loss(leaf, tensor(target), tensor(IOU[:2]), 1.5, beta, 3.0, 7.0)
    check((found, *torch.autograd.grad(found, leaf)), (loss, gradient))

"""The losses as literal loops over the written formulas, in Python floats: the independent oracle.

Those of the ranking losses take the scores of the positives and of the negatives as lists, and return losses and
updates as lists.
"""

import math


def step(x: float, delta: float) -> float:
    if delta == 0:
        return 1.0 if x >= 0 else 0.0
    return min(max(x / (2 * delta) + 0.5, 0.0), 1.0)


def ap(positives: list[float], negatives: list[float], delta: float, interpolate: bool):
    """(loss, updates of the positives, updates of the negatives)."""
    num = len(positives)
    precision, rank = [], []
    for i, p in enumerate(positives):
        among = 1 + sum(step(q - p, delta) for k, q in enumerate(positives) if k != i)
        above = sum(step(n - p, delta) for n in negatives)
        precision.append(among / (among + above))
        rank.append(among + above)
    best = [max(precision[k] for k in range(num) if positives[k] <= p) if interpolate else precision[i]
            for i, p in enumerate(positives)]  # fmt: skip
    weights = []
    for i in range(num):
        weight = 1 / rank[i]
        if best[i] > precision[i]:
            weight *= (1 - best[i]) / (1 - precision[i])
        weights.append(weight / num)
    to_positives = [-(1 - q) / num for q in best]
    to_negatives = [sum(w * step(n - p, delta) for w, p in zip(weights, positives)) for n in negatives]
    return 1 - sum(best) / num, to_positives, to_negatives


def alrp(positives: list[float], negatives: list[float], errors: list[float], delta: float, eps: float = 1e-5):
    """(classification, localization, updates of the positives, of the negatives, gradient in the errors)."""
    num = len(positives)
    to_positives, to_negatives = [0.0] * num, [0.0] * len(negatives)
    error_gradient = [0.0] * num
    classification = localization = 0.0
    for i, p in enumerate(positives):
        among = 1 + sum(step(q - p, delta) for k, q in enumerate(positives) if k != i)
        above = [step(n - p, delta) for n in negatives]
        rank = among + sum(above)
        classification += (1 - among / rank) / num
        for k, q in enumerate(positives):
            if q >= p:
                localization += errors[k] / rank / num
                error_gradient[k] += 1 / rank / num
        if sum(above) > eps:
            error_above = sum(step(q - p, delta) * errors[k] for k, q in enumerate(positives) if k != i)
            error = (sum(above) + error_above) / rank
            to_positives[i] -= error / num
            for j, h in enumerate(above):
                to_negatives[j] += error * h / sum(above) / num
    return classification, localization, to_positives, to_negatives, error_gradient


def rank_sort(positives: list[float], negatives: list[float], iou: list[float], delta: float, eps: float = 1e-10):
    """(ranking, sorting, positives' and negatives' updates of ranking, positives' updates of sorting)."""
    num = len(positives)
    ranked_positives, ranked_negatives, sorted_positives = [0.0] * num, [0.0] * len(negatives), [0.0] * num
    mean_ranking = mean_sorting = 0.0
    for i, p in enumerate(positives):
        above = [step(n - p, delta) for n in negatives]
        relation = [step(q - p, delta) for q in positives]
        ranking = sum(above) / (sum(relation) + sum(above))
        mean_ranking += ranking / num
        if sum(above) > eps:
            ranked_positives[i] -= ranking / num
            for j, h in enumerate(above):
                ranked_negatives[j] += ranking * h / sum(above) / num

        current = sum(h * (1 - t) for h, t in zip(relation, iou)) / sum(relation)
        in_order = [h if t >= iou[i] else 0.0 for h, t in zip(relation, iou)]
        target = sum(h * (1 - t) for h, t in zip(in_order, iou)) / sum(in_order)
        mean_sorting += (current - target) / num
        missorted = [h if t < iou[i] else 0.0 for h, t in zip(relation, iou)]
        if sum(missorted) > 0:
            sorted_positives[i] -= (current - target) / num
            for k, h in enumerate(missorted):
                sorted_positives[k] += (current - target) * h / sum(missorted) / num
    return mean_ranking, mean_sorting, ranked_positives, ranked_negatives, sorted_positives


def iou_balanced(kind, logits, labels, iou, eta=1.5, alpha=0.25, gamma=2.0):
    """(sum before avg_factor, gradient of the logits) in Python floats, one anchor and one channel at a time."""
    negatives, positives = [], []  # (loss, weight of a positive, gradient {position: value})
    for a, (row, label) in enumerate(zip(logits, labels)):
        if label < 0:
            continue
        if kind == "softmax":
            exponentials = [math.exp(x) for x in row]
            gradient = {(a, c): e / sum(exponentials) - (c == label) for c, e in enumerate(exponentials)}
            loss = math.log(sum(exponentials)) - row[label]
            (positives if label < len(row) - 1 else negatives).append((loss, a, gradient))
            continue
        for c, x in enumerate(row):
            p = 1 / (1 + math.exp(-x))
            if kind == "bce" and c == label:
                positives.append((-math.log(p), a, {(a, c): p - 1}))
            elif kind == "bce":
                negatives.append((-math.log(1 - p), a, {(a, c): p}))
            elif c == label:  # the derivative of (1 - p)^g log(p) in x is (1 - p)^g ((1 - p) - g p log(p))
                slope = -alpha * (1 - p) ** gamma * ((1 - p) - gamma * p * math.log(p))
                positives.append((-alpha * (1 - p) ** gamma * math.log(p), a, {(a, c): slope}))
            else:
                slope = (1 - alpha) * p**gamma * (p - gamma * (1 - p) * math.log(1 - p))
                negatives.append((-(1 - alpha) * p**gamma * math.log(1 - p), a, {(a, c): slope}))
    weighted = sum(iou[a] ** eta * loss for loss, a, _ in positives)
    z = sum(loss for loss, _, _ in positives) / (weighted + 1e-6)
    gradient = [[0.0] * len(row) for row in logits]
    for terms, weight in ((negatives, lambda a: 1.0), (positives, lambda a: z * iou[a] ** eta)):
        for _, anchor, of_term in terms:
            for (a, c), value in of_term.items():
                gradient[a][c] += weight(anchor) * value
    return sum(loss for loss, _, _ in negatives) + z * weighted, gradient

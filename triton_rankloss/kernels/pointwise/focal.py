"""The sigmoid focal loss of a logit, and its derivative; binary cross-entropy is the case gamma = 0.

    l = sigmoid(-s)^gamma softplus(-s),    dl/ds = -sigmoid(-s)^gamma (gamma sigmoid(s) softplus(-s) + sigmoid(-s))

s is the logit x of a positive, and -x of a negative. A kernel is compiled for one POWER: gamma where that is 0, 1 or 2,
and the power a product, else -1.
"""

import triton
import triton.language as tl

from ..arithmetic import exponential, log1p, reciprocal


@triton.jit
def focal_parts(s, gamma, POWER: tl.constexpr):
    """(sigmoid(-s)^gamma, softplus(-s), sigmoid(-s))."""
    e = exponential(-tl.abs(s))
    r = reciprocal(1 + e)
    missing = tl.where(s < 0, r, e * r)
    log1p_e = log1p(e)
    cost = tl.maximum(-s, 0) + log1p_e
    if POWER == 0:
        weight = tl.full(s.shape, 1, s.dtype)
    elif POWER == 1:
        weight = missing
    elif POWER == 2:
        weight = missing * missing
    else:
        weight = exponential(-gamma * (tl.maximum(s, 0) + log1p_e))
    return weight, cost, missing


@triton.jit
def focal(s, gamma, POWER: tl.constexpr):
    """The loss l."""
    weight, cost, _ = focal_parts(s, gamma, POWER)
    return weight * cost


@triton.jit
def focal_slope(s, gamma, POWER: tl.constexpr):
    """The derivative dl/ds."""
    weight, cost, missing = focal_parts(s, gamma, POWER)
    if POWER == 0:
        return -missing
    return -weight * (gamma * (1 - missing) * cost + missing)


def power_of(gamma: float) -> int:
    """The POWER of kernels for this gamma."""
    return int(gamma) if gamma in (0, 1, 2) else -1

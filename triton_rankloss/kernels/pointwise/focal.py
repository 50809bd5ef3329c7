"""The sigmoid focal loss of a logit, and its derivative; binary cross-entropy is the case gamma = 0.

    l = sigmoid(z)^gamma softplus(z),    dl/dz = sigmoid(z)^gamma (gamma sigmoid(-z) softplus(z) + sigmoid(z))

z is the logit x of a negative, and -x of a positive: sigmoid(z) is the probability missing from the right answer. A
kernel is compiled for one POWER: gamma where that is 0, 1 or 2, and the power a product, else -1.
"""

import triton
import triton.language as tl

from ..arithmetic import exp_minus_abs, exponential, log1p, reciprocal


@triton.jit
def focal_parts(z, gamma, POWER: tl.constexpr):
    """(sigmoid(z)^gamma, softplus(z), sigmoid(z))."""
    e = exp_minus_abs(z)
    r = reciprocal(1 + e)
    missing = tl.where(z < 0, e * r, r)
    log1p_e = log1p(e)
    cost = tl.maximum(z, 0) + log1p_e
    if POWER == 0:
        weight = tl.full(z.shape, 1, z.dtype)
    elif POWER == 1:
        weight = missing
    elif POWER == 2:
        weight = missing * missing
    else:
        weight = exponential(gamma * (tl.minimum(z, 0) - log1p_e))
    return weight, cost, missing


@triton.jit
def focal(z, gamma, POWER: tl.constexpr):
    """The loss l."""
    weight, cost, _ = focal_parts(z, gamma, POWER)
    return weight * cost


@triton.jit
def focal_slope(z, gamma, POWER: tl.constexpr):
    """The derivative dl/dz."""
    weight, cost, missing = focal_parts(z, gamma, POWER)
    if POWER == 0:
        return missing
    return weight * ((gamma - gamma * missing) * cost + missing)


def power_of(gamma: float) -> int:
    """The POWER of kernels for this gamma."""
    return int(gamma) if gamma in (0, 1, 2) else -1

"""H, the step that every ranking loss here is made of: how much a score counts as above another.

H(x) = clip(x / (2 delta) + 1/2, 0, 1),   for delta = 0: H(x) = [x >= 0]
"""

import triton
import triton.language as tl


@triton.jit
def step(x, half_inverse_delta, HARD: tl.constexpr):
    """H(x), with half_inverse_delta = 1 / (2 delta); HARD for delta = 0. NaN stays."""
    return tl.where(x == x, saturating_step(x, half_inverse_delta, HARD), x)


@triton.jit
def saturating_step(x, half_inverse_delta, HARD: tl.constexpr):
    """H(x) in two instructions, where NaN is looked after elsewhere: compiled, a saturating operation makes it 0."""
    if HARD:
        return (x >= 0).to(x.dtype)
    return tl.clamp(x * half_inverse_delta + 0.5, 0.0, 1.0)


def representable(delta: float) -> float:
    """`delta`, if above 0 at least so large that float32 holds 1 / (2 delta), times a weight and an upstream gradient.

    That moves H for scores closer than 2**-100 only; those that are equal still count 1/2.
    """
    return max(delta, 2.0**-100) if delta > 0 else 0.0


def half_inverse(delta: float) -> float:
    """1 / (2 delta); for delta = 0, where no kernel reads it, 0."""
    return 0.5 / delta if delta > 0 else 0.0

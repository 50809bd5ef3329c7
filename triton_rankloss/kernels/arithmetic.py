"""Arithmetic that several kernels share: numbers in a kernel's dtype, bounds, exp, log and reciprocal.

A kernel makes everything of a logit s from e = exp(-|s|), which neither overflows nor cancels, r = 1 / (1 + e) and
log1p(e):
    sigmoid(s)   r for s >= 0, else e r          softplus(-s)   max(-s, 0) + log1p(e) = -log sigmoid(s)
    sigmoid(-s)  e r for s >= 0, else r          sigmoid(s) sigmoid(-s)   e r^2
Instructions of each in float32, counted in the machine code for sm_90 (not yet measured on a GPU):
    exp2         1, of the special function unit; exp takes 4, which is why exp(x) is 2^(x log2 e)
    1 / (1 + e)  4: the inverse square root, squared, and a Newton step; a division takes 9
    log1p(e)     9: e times a polynomial of degree 8, which on [0, 1] is log1p(e) / e to 3e-8; tl.log takes 25
Numbers that a caller passes as Python floats arrive as float64 (annotated so) and are rounded to COMPUTE at the top of
a kernel: Triton would pass them as float32, too coarse for float64 logits.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LARGEST_LOGIT = tl.constexpr(1e30)  # as in dtypes.clamp_infinities


@triton.jit
def number(x, DTYPE: tl.constexpr):
    """A kernel's float64 argument in another dtype; under the interpreter x is still a Python float."""
    return (x + tl.full([], 0, tl.float64)).to(DTYPE)


@triton.jit
def bounded(x, limit: tl.constexpr):
    """x in [-limit, limit]; NaN stays."""
    if x.dtype == tl.float64:  # Triton 3.7 makes an instruction of this clamp that float64 has not
        return tl.where(x > limit, limit, tl.where(x < -limit, -limit, x))
    return tl.clamp(x, -limit, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clamp_infinities(x, COMPUTE: tl.constexpr):
    """Logits in COMPUTE; infinite ones become large finite numbers, NaN stays."""
    limit: tl.constexpr = 65504.0 if x.dtype == tl.float16 else LARGEST_LOGIT
    return bounded(x.to(COMPUTE), limit)


@triton.jit
def exponential(x):
    """exp(x)."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    return tl.exp2(x * LOG2E)


@triton.jit
def exp_minus_abs(x):
    """exp(-|x|)."""
    if x.dtype == tl.float64:
        return tl.exp(-tl.abs(x))
    return tl.exp2(-tl.abs(x * LOG2E))


@triton.jit
def reciprocal(d):
    """1 / d for d in [1, 2]; each Newton step squares the relative error, 2e-7 at first."""
    root = tl.math.rsqrt(d.to(tl.float32))
    r = (root * root).to(d.dtype)
    r = r * (2 - d * r)
    if d.dtype == tl.float64:
        r = r * (2 - d * r)
    return r


@triton.jit
def log1p(e):
    """log(1 + e) for e in [0, 1], to the last digits."""
    if e.dtype == tl.float64:
        u = 1 + e
        return tl.log(u) + (e - (u - 1)) * reciprocal(u)
    p = e * 0.005232693627476692 - 0.02950523979961872
    p = p * e + 0.07822596281766891
    p = p * e - 0.13663247227668762
    p = p * e + 0.19106008112430573
    p = p * e - 0.2484298199415207
    p = p * e + 0.3331909775733948
    p = p * e - 0.4999949336051941
    return e * (p * e + 0.9999999403953552)

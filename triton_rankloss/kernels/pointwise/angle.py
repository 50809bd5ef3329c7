"""The angle of a point: Triton's own arctangents exist on every GPU, but not in its interpreter.

A point above the diagonal is mirrored in it; the others have y <= x, and there
    arctan(y / x) = pi / 4 + arctan((y - x) / (y + x))      used where y / x > tan(pi / 8)
leaves |r| <= tan(pi / 8) for arctan(r) = r + r^3 P(r^2). P, of degree 10, interpolates at Chebyshev nodes; the relative
error is 7e-18, so one polynomial serves float32 and float64. Its cost is small beside that of a kernel's loads.
"""

import math

import triton
import triton.language as tl

TAN_PI_8 = tl.constexpr(math.tan(math.pi / 8))
TWO_OVER_PI = tl.constexpr(2 / math.pi)


@triton.jit
def angle(y, x):
    """The angle of the point (x, y), for x and y not below 0 and not both 0; a right angle is 1."""
    small, large = tl.minimum(x, y), tl.maximum(x, y)
    folded = small > large * TAN_PI_8
    r = tl.where(folded, small - large, small) / tl.where(folded, small + large, large)
    z = r * r
    p = -0.019162068915902573 * z + 0.03921955253255129
    p = p * z - 0.05085030492810941
    p = p * z + 0.058580687568615106
    p = p * z - 0.06664502215671447
    p = p * z + 0.07692182535116648
    p = p * z - 0.09090904549884611
    p = p * z + 0.11111111014561013
    p = p * z - 0.14285714284657894
    p = p * z + 0.1999999999999548
    p = p * z - 0.3333333333333333
    turned = (r + r * z * p) * TWO_OVER_PI + tl.where(folded, 0.5, 0.0)
    return tl.where(y > x, 1 - turned, turned)

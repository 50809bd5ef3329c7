"""Softmax cross-entropy of rows of logits [A, K]: what the losses that use it share.

    l = log(sum_c exp(x_c)) - x_label = (m - x_label) + log(t),   m = max_c x_c,   t = sum_c exp(x_c - m)
    dl/dx_c = exp(x_c - m) / t - [c = label]
A tile is ROWS rows of COLS channels. Rows of up to MAX_COLS channels are read once and stay in registers. The backward
pass computes m and t again: from registers that costs no bytes, and keeping them would cost 8 a row. Longer rows are
read in pieces, and m and t are rescaled when m rises; the backward pass reads such rows a second time, from cache.

Infinite logits count as large finite ones; a label of K or more gives NaN.

    symbol               meaning
    rows                 of a tile, by number; where a row is not used (ignored, or behind the last), it is not read
    labels               of these rows; below 0 ignored

    accumulation         COMPUTE: float32 (float64 for float64 logits)
"""

import triton
import triton.language as tl

from ..arithmetic import clamp_infinities, exponential

# Not yet measured on a GPU. 16 logits a thread, and no more warps than that takes: with one warp to a row, a sum over
# the row is 5 shuffles, without shared memory and barriers, and only that warp does what is done once for each row.
LOGITS_PER_WARP = 512
MAX_COLS = 4096
MAX_WARPS = 4096  # that read the logits forward: several for each scheduler of today's GPUs


def tile_of(num_channels: int) -> dict[str, int]:
    """The constants of kernels that read rows."""
    cols = min(triton.next_power_of_2(num_channels), MAX_COLS)
    return {
        "ROWS": max(1, LOGITS_PER_WARP // cols),
        "COLS": cols,
        "NUM_CHANNELS": num_channels,
        "num_warps": max(1, cols // LOGITS_PER_WARP),
    }


def num_programs_of(num_rows: int, tile: dict[str, int]) -> int:
    """How many programs read the rows forward."""
    return min(triton.cdiv(num_rows, tile["ROWS"]), MAX_WARPS // tile["num_warps"])


@triton.jit
def load_channels(
    logits_ptr,
    rows,
    used,
    start,
    COLS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """(channels [COLS] from start, logits [ROWS, COLS]): 0 in rows that are not used, -inf behind the last channel."""
    c = start + tl.arange(0, COLS)
    at = logits_ptr + rows[:, None] * NUM_CHANNELS + c[None, :]
    x = tl.load(at, mask=used[:, None] & (c < NUM_CHANNELS)[None, :], other=0)
    return c, tl.where((c < NUM_CHANNELS)[None, :], clamp_infinities(x, COMPUTE), float("-inf"))


@triton.jit
def log_sum_exp(logits_ptr, rows, used, COLS: tl.constexpr, NUM_CHANNELS: tl.constexpr, COMPUTE: tl.constexpr):
    """(m, t) of rows [ROWS]."""
    _, x = load_channels(logits_ptr, rows, used, 0, COLS, NUM_CHANNELS, COMPUTE)
    m = tl.max(x, 1)
    t = tl.sum(exponential(x - m[:, None]), 1)
    for start in range(COLS, NUM_CHANNELS, COLS):
        _, x = load_channels(logits_ptr, rows, used, start, COLS, NUM_CHANNELS, COMPUTE)
        larger = tl.maximum(m, tl.max(x, 1))
        t = t * exponential(m - larger) + tl.sum(exponential(x - larger[:, None]), 1)
        m = larger
    return m, t


@triton.jit
def cross_entropy(
    logits_ptr,
    rows,
    labels,
    used,
    COLS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """l of the used rows [ROWS]."""
    m, t = log_sum_exp(logits_ptr, rows, used, COLS, NUM_CHANNELS, COMPUTE)
    named = used & (labels < NUM_CHANNELS)
    own = clamp_infinities(tl.load(logits_ptr + rows * NUM_CHANNELS + labels, mask=named, other=0), COMPUTE)
    return tl.where(named | (used == 0), m - own + tl.log(t), float("nan"))


@triton.jit
def store_gradient(
    logits_ptr,
    gradient_ptr,
    rows,
    labels,
    stored,
    used,
    factors,
    COLS: tl.constexpr,
    NUM_CHANNELS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """Write the gradient of the `stored` rows: factors [ROWS] dl/dx, 0 in rows that are not used."""
    factors = tl.where(labels < NUM_CHANNELS, factors, float("nan"))
    used = used & (factors != 0)
    m, t = log_sum_exp(logits_ptr, rows, used, COLS, NUM_CHANNELS, COMPUTE)
    inverse = 1 / t
    for start in range(0, NUM_CHANNELS, COLS):
        c, x = load_channels(logits_ptr, rows, used, start, COLS, NUM_CHANNELS, COMPUTE)
        slopes = exponential(x - m[:, None]) * inverse[:, None] - (c[None, :] == labels[:, None]).to(COMPUTE)
        gradient = tl.where(used[:, None], factors[:, None] * slopes, 0).to(gradient_ptr.dtype.element_ty)
        at = gradient_ptr + rows[:, None] * NUM_CHANNELS + c[None, :]
        tl.store(at, gradient, mask=stored[:, None] & (c < NUM_CHANNELS)[None, :])

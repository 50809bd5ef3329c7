"""Softmax cross-entropy of rows of logits [A, K]: what the losses that use it share.

    l = log(sum_c exp(x_c)) - x_label = (m - x_label) + log(t),   m = max_c x_c,   t = sum_c exp(x_c - m)
    dl/dx_c = exp(x_c - m) / t - [c = label]
A tile is ROWS rows of COLS channels. Rows of up to MAX_COLS channels are read once and stay in registers, backward too:
making m and t again from there costs no bytes, keeping them from the forward pass would cost 8 a row. Longer rows are
read in pieces, m and t rescaled when m rises, and backward a second time, from cache.

Infinite logits count as large finite ones; a label of K or more gives NaN.
"""

import triton
import triton.language as tl

from ..arithmetic import exponential, finite

# Not yet measured on a GPU. 16 logits a thread, as few warps as that takes: with one warp to a row a sum over it is 5
# shuffles, without shared memory and barriers, and what is done once a row is not done by every warp.
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
def load_channels(logits_ptr, rows, used, start, COLS: tl.constexpr, NUM_CHANNELS: tl.constexpr, COMPUTE: tl.constexpr):
    """(channels [COLS] from start, logits [ROWS, COLS]): 0 in rows that are not used, -inf behind the last channel."""
    c = start + tl.arange(0, COLS)
    at = logits_ptr + rows[:, None] * NUM_CHANNELS + c[None, :]
    x = tl.load(at, mask=used[:, None] & (c < NUM_CHANNELS)[None, :], other=0)
    return c, tl.where((c < NUM_CHANNELS)[None, :], finite(x, COMPUTE), float("-inf"))


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
    logits_ptr, rows, labels, used, COLS: tl.constexpr, NUM_CHANNELS: tl.constexpr, COMPUTE: tl.constexpr
):
    """l of the used rows [ROWS]; others are not read."""
    m, t = log_sum_exp(logits_ptr, rows, used, COLS, NUM_CHANNELS, COMPUTE)
    named = used & (labels < NUM_CHANNELS)
    own = finite(tl.load(logits_ptr + rows * NUM_CHANNELS + labels, mask=named, other=0), COMPUTE)
    return tl.where(named | (used == 0), m - own + tl.log(t), float("nan"))


@triton.jit
def store_gradient(
    logits_ptr, gradient_ptr, rows, labels, there, used, factors,
    COLS: tl.constexpr, NUM_CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Gradient of the rows that are there: factors [ROWS] dl/dx, 0 in rows that are not used."""
    factors = tl.where(labels < NUM_CHANNELS, factors, float("nan"))
    used = used & (factors != 0)
    m, t = log_sum_exp(logits_ptr, rows, used, COLS, NUM_CHANNELS, COMPUTE)
    inverse = 1 / t
    for start in range(0, NUM_CHANNELS, COLS):
        c, x = load_channels(logits_ptr, rows, used, start, COLS, NUM_CHANNELS, COMPUTE)
        slopes = exponential(x - m[:, None]) * inverse[:, None] - (c[None, :] == labels[:, None]).to(COMPUTE)
        gradient = tl.where(used[:, None], factors[:, None] * slopes, 0).to(gradient_ptr.dtype.element_ty)
        at = gradient_ptr + rows[:, None] * NUM_CHANNELS + c[None, :]
        tl.store(at, gradient, mask=there[:, None] & (c < NUM_CHANNELS)[None, :])

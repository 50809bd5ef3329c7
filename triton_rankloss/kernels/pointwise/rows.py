"""Tiles of rows of few values, such as boxes and their offsets: contiguous [num_rows, D], D a constant.

Where D is a power of two, a tile is read as one run of values, so that a thread's loads and stores are of 16 bytes in
every dtype; otherwise rows are padded to the next power of two.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def load_rows(values_ptr, first, num_rows, ROWS: tl.constexpr, D: tl.constexpr, COMPUTE: tl.constexpr):
    """Rows first:first + ROWS (`first` an int64): [ROWS, D]; 0 behind the last row, and where rows are padded."""
    if D & (D - 1) == 0:
        at = first * D + tl.arange(0, ROWS * D)
        values = tl.load(values_ptr + at, mask=at < tl.cast(num_rows, tl.int64) * D, other=0)
        values = tl.reshape(values, [ROWS, D])
    else:
        i, column = first + tl.arange(0, ROWS)[:, None], tl.arange(0, triton.next_power_of_2(D))[None, :]
        values = tl.load(values_ptr + i * D + column, mask=(i < num_rows) & (column < D), other=0)
    return values.to(COMPUTE)


@triton.jit
def round_to(values, values_ptr):
    """`values` in the dtype of the pointer; by way of float32 to bfloat16, as the interpreter cannot from float64."""
    if values_ptr.dtype.element_ty == tl.bfloat16:
        return values.to(tl.float32).to(tl.bfloat16)
    return values.to(values_ptr.dtype.element_ty)


@triton.jit
def store_rows(values_ptr, first, num_rows, values, ROWS: tl.constexpr, D: tl.constexpr):
    """Write the rows that load_rows reads, in the dtype of the pointer."""
    values = round_to(values, values_ptr)
    if D & (D - 1) == 0:
        at = first * D + tl.arange(0, ROWS * D)
        tl.store(values_ptr + at, tl.reshape(values, [ROWS * D]), mask=at < tl.cast(num_rows, tl.int64) * D)
    else:
        i, column = first + tl.arange(0, ROWS)[:, None], tl.arange(0, triton.next_power_of_2(D))[None, :]
        tl.store(values_ptr + i * D + column, values, mask=(i < num_rows) & (column < D))


def upstream_and_stride(upstream: Tensor) -> tuple[Tensor, int]:
    """`upstream` [...] to be read at i * stride; as it is, with stride 0, where it is one number expanded."""
    if upstream.numel() > 1 and not any(upstream.stride()):
        return upstream, 0
    return upstream.contiguous(), 1

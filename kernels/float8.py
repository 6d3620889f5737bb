"""float8_e4m3fn inside Triton kernels, as bytes: sign, four bits of exponent of bias 7, three of mantissa (Micikevicius
et al. 2022).

Done with integers since Triton converts to this format on no GPU before sm_89 and, in version 3.6, in two roundings
there. The largest number is 448; there is no infinity, and 0x7F is the only NaN beside its negative.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def widened(code):
    """The float32 that a byte stands for."""
    # As bits of a float32, whose bias is 127: too small by 2^120, numbers below the smallest normal included.
    bits = (code.to(tl.int8, bitcast=True).to(tl.int32) << 20) & -0x78100000
    number = bits.to(tl.float32, bitcast=True) * 1.329227995784916e36
    return tl.where(tl.abs(number) == 480.0, float("nan"), number)


@triton.jit
def narrowed(x):
    """The byte nearest to a float32, of two equally near the even one; of what is beyond 448, that of 448."""
    size = tl.minimum(tl.abs(x), 448.0)
    bits = size.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3)
    # Below 2^-6 the numbers are 2^-9 apart, as they are from 2^14 on in float32: to add that rounds to them.
    small = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(size < 0.015625, small, normal)
    code = tl.where(x == x, code, 0x7F)
    return (code | x.to(tl.int32, bitcast=True) >> 24 & 0x80).to(tl.uint8)


def as_bytes(pages: Tensor) -> Tensor:
    """What a kernel is given: pages of float8_e4m3fn as their bytes, others as they are."""
    return pages.view(torch.uint8) if pages.dtype == torch.float8_e4m3fn else pages

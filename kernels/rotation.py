"""Rotary positions inside Triton kernels (Su et al. 2021)."""

import triton
import triton.language as tl


@triton.jit
def cosine_sine(angle):
    """Both to about an ulp of 1, for float32 angles up to 2^24.

    The angle less the nearest multiple of pi / 2 (Cody and Waite: pi / 2 in three parts, of which the multiples of the
    first two are exact), and polynomials on what is left, of the coefficients that Cephes' sinf and cosf have (Moshier
    1989). Triton's own would keep a table for angles beyond those in local memory.
    """
    quarters = tl.floor(angle * 0.6366197723675814 + 0.5)
    x = tl.fma(quarters, -1.5703125, angle)
    x = tl.fma(quarters, -4.837512969970703125e-4, x)
    x = tl.fma(quarters, -7.54978995489188216e-8, x)
    z = x * x
    sine = tl.fma(tl.fma(tl.fma(z, -1.9515295891e-4, 8.3321608736e-3), z, -1.6666654611e-1) * z, x, x)
    tail = tl.fma(tl.fma(z, 2.443315711809948e-5, -1.388731625493765e-3), z, 4.166664568298827e-2)
    cosine = tl.fma(tail * z, z, tl.fma(z, -0.5, 1.0))
    turn = quarters.to(tl.int32)
    swap = turn % 2 != 0
    cosine, sine = tl.where(swap, sine, cosine), tl.where(swap, cosine, sine)
    return tl.where((turn + 1) & 2 != 0, -cosine, cosine), tl.where(turn & 2 != 0, -sine, sine)


@triton.jit
def partner(d, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The other dim of the pair that dim d is of."""
    if INTERLEAVED:
        return d ^ 1
    return tl.where(d < PAIRS, d + PAIRS, d - PAIRS)


@triton.jit
def turns(inv_freq, position, d, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The factors of x[d] and x[partner(d)] whose sum is dim d of x rotated; 1 and 0 behind the pairs. In float32."""
    if INTERLEAVED:
        pair = d // 2
        first = d % 2 == 0
    else:
        pair = tl.where(d < PAIRS, d, d - PAIRS)
        first = d < PAIRS
    frequency = tl.load(inv_freq + pair, mask=d < 2 * PAIRS, other=0.0).to(tl.float32)
    cosine, sine = cosine_sine(position * frequency)
    return cosine, tl.where(first, -sine, sine)

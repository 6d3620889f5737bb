"""relpos_attention as one pass of online softmax, with the relative shift done in registers.

For M queries from i0 and N keys from j0 the position scores are P[a, c] = q[i0+a] . r[T-M-i0+j0 + c], of which query a
reads columns M-1-a to M-1-a+N-1: each row starts one column before the row above it. Three observations make this cheap.

- Blocks of N columns of P are shared by neighbouring key tiles, so that a tile computes N new columns and keeps the
  earlier ones: the position scores cost what the content scores cost, not (M+N)/N times that.
- Within a block the shift is a rotation of each row, after which a block is where every key tile wants it. A row takes
  its N values from two neighbouring blocks, as `column + shift < N` decides.
- A rotation by s is log2(N) exchanges: position c goes to b = c - s (mod N) one bit at a time from the lowest, and
  whether bit t changes follows from s and the lower bits of b, bit t of s + (b mod 2^t). An exchange of columns that
  differ in one bit stays in the registers of a thread, or crosses two lanes of a quad (bits 1 and 2 of a tensor-core
  accumulator), never shared memory. It is written as the sum of the two less one's own, which compiles to one select.

score = scale (q.k + q.r + u.k + v.r): the two bias terms are numbers per key and per position, computed by a small
kernel before, so that one copy of q serves both products and no sum q + u is rounded to the dtype of the tensor cores.
The term of the keys is -inf behind the length, which is all the masking there is.

32 x 438 frames of 8 heads of 160 in bfloat16: 49 GFLOP in tiles of 64 x 32. A tile takes 650 instructions a warp and
480 cycles of an H100's tensor cores, and reads 30 kB from L2: with two programs an SM some 100 us, estimated, not
measured. The T x 2T scores in memory alone would cost 1.1 GB, 250 us.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.launch import on_device_of

LOG2E = 1.4426950408889634
ROWS = 32
"""Rows of k or r a program of the small kernel multiplies with the biases."""


@triton.jit
def _columns(shift, COUNT: tl.constexpr, M: tl.constexpr):
    """shift[a] + b for b < COUNT. The multiples of 8, which tell registers of a thread apart, are added last: as
    constants they cost an instruction, as part of an arange a register each."""
    LOW: tl.constexpr = min(COUNT, 8)
    low = shift[:, None, None] + tl.arange(0, LOW)[None, None, :]
    return tl.reshape(low + 8 * tl.arange(0, COUNT // LOW)[None, :, None], (M, COUNT))


@triton.jit
def _exchange(x, shift, HALF: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """The rotation's step for the bit that is worth HALF."""
    pairs = tl.reshape(x, (M, N // (2 * HALF), 2, HALF))
    other = tl.sum(pairs, 2, keep_dims=True) - pairs
    change = tl.reshape(_columns(shift, HALF, M) & HALF, (M, 1, 1, HALF)) != 0
    return tl.reshape(tl.where(change, other, pairs), (M, N))


@triton.jit
def _rotate(p, shift, M: tl.constexpr, N: tl.constexpr):
    """p[a, (b + shift[a]) mod N]."""
    x = p.to(tl.int32, bitcast=True)
    for bit in tl.static_range(8):
        if 1 << bit < N:
            x = _exchange(x, shift, 1 << bit, M, N)
    return x.to(tl.float32, bitcast=True)


@triton.jit
def _lanes(part, WIDTHS: tl.constexpr):
    """The head's components of one part."""
    first = 0
    for before in tl.static_range(part):
        first += WIDTHS[before]
    return first + tl.arange(0, WIDTHS[part])


@triton.jit
def _add_product(c, held, q, own, x, rows, DIM: tl.constexpr, WIDTHS: tl.constexpr, CHUNK: tl.constexpr):
    """c + Q X^T, where rows `rows` of x are X, and Q is `held` in parts, or rows `own` of q, by chunks of components."""
    if CHUNK == 0:
        for part in tl.static_range(len(WIDTHS)):
            d = _lanes(part, WIDTHS)[None, :]
            c = tl.dot(held[part], tl.trans(tl.load(x + d + rows, mask=d < DIM, other=0.0)), c)
    else:
        # Summed apart, lest a large c cost each product digits, which float32 would show.
        product = tl.zeros_like(c)
        for first in range(0, DIM, CHUNK):
            d = first + tl.arange(0, CHUNK)[None, :]
            chunk = tl.load(q + d + own, mask=d < DIM, other=0.0)
            other = tl.load(x + d + rows, mask=d < DIM, other=0.0)
            product = tl.dot(chunk, tl.trans(other), product, input_precision="ieee")
        c += product
    return c


@triton.jit
def _block(
    held,
    q,
    own,
    r,
    position,
    first,
    reach,
    shift,
    R_STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTHS: tl.constexpr,
    CHUNK: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """A rotated block of position scores: columns for r's rows from `first`, counted from the middle one.

    Rows beyond r's ends belong to no pair of a query and a key; they repeat its last.
    """
    steps = tl.minimum(tl.maximum(first + tl.arange(0, N), -reach), reach)
    bias = tl.broadcast_to(tl.load(position + steps)[None, :], (M, N))
    p = _add_product(bias, held, q, own, r, steps.to(tl.int64)[:, None] * R_STRIDE, DIM, WIDTHS, CHUNK)
    return _rotate(p, shift, M, N)


@triton.jit(do_not_specialize=["q_batch", "q_head", "k_batch", "k_head", "v_batch", "v_head", "r_head", "frames", "zero"])
def _relpos_attention(
    q,
    k,
    v,
    r,
    content,
    position,
    lengths,
    out,
    scale,
    q_batch,
    q_head,
    k_batch,
    k_head,
    v_batch,
    v_head,
    r_head,
    frames,
    zero,
    Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    R_STRIDE: tl.constexpr,
    UNIT: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTHS: tl.constexpr,
    CHUNK: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """One tile of M = 2 N queries of one head. Strides of batch and head are in units of UNIT elements.

    `zero` is 0, which the compiler must not know: from it starts the walk over the keys, and a walk that is known to
    start on a multiple of N has predicates that it can compute before, and keeps them in 60 registers that spill.
    """
    tl.static_assert(M == 2 * N)
    tiles = tl.cdiv(frames, M)
    tile = tl.program_id(0) % tiles
    head = tl.program_id(0) // tiles % HEADS
    b = (tl.program_id(0) // tiles // HEADS).to(tl.int64)
    start = tile * M
    length = frames
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + b), frames).to(tl.int32)
        # What queries behind the length give is not specified, and need not be computed.
        length = tl.where(start < length, length, 0)

    q += (b * q_batch + head * q_head) * UNIT
    k += (b * k_batch + head * k_head) * UNIT
    v += (b * v_batch + head * v_head) * UNIT
    r += head.to(tl.int64) * r_head * UNIT + (frames - 1).to(tl.int64) * R_STRIDE
    content += (b * HEADS + head) * (tl.cdiv(frames, N) * N)
    position += head.to(tl.int64) * (2 * frames - 1) + frames - 1

    a = tl.arange(0, M)
    n = tl.arange(0, N)
    # Queries beyond the frames repeat the last one and are not stored.
    own = tl.minimum(start + a, frames - 1).to(tl.int64)[:, None] * Q_STRIDE
    held = ()
    sums = ()
    for part in tl.static_range(len(WIDTHS)):
        d = _lanes(part, WIDTHS)[None, :]
        if CHUNK == 0:
            held += (tl.load(q + d + own, mask=d < DIM, other=0.0),)
        sums += (tl.zeros((M, WIDTHS[part]), tl.float32),)
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)

    # Blocks count from the row of r that query start + M - 1 has for key 0. At key tile t the lower N queries read
    # blocks t and t + 1, the upper N blocks t + 1 and t + 2: `left` and `right` are what each half reads.
    shift = M - 1 - a
    base = 1 - M - start
    upper = (a < N)[:, None]
    below = _block(held, q, own, r, position, base, frames - 1, shift, R_STRIDE, DIM, WIDTHS, CHUNK, M, N)
    last = _block(held, q, own, r, position, base + N, frames - 1, shift, R_STRIDE, DIM, WIDTHS, CHUNK, M, N)
    left = tl.where(upper, last, below)
    for j in range(zero, length, N):
        turn = shift + j
        new = _block(held, q, own, r, position, base + M + j, frames - 1, turn, R_STRIDE, DIM, WIDTHS, CHUNK, M, N)
        right = tl.where(upper, new, last)
        s = tl.where(_columns(turn & (N - 1), N, M) < N, left, right)
        left = right
        last = new

        # Keys behind the length repeat the last one: finite where the row is.
        keys = tl.minimum(j + n, length - 1).to(tl.int64)[:, None]
        s = _add_product(s, held, q, own, k, keys * K_STRIDE, DIM, WIDTHS, CHUNK)
        s = tl.fma(s, tl.full((M, N), scale, tl.float32), tl.broadcast_to(tl.load(content + j + n)[None, :], (M, N)))
        top = tl.maximum(highest, tl.max(s, 1))
        p = tl.exp2(s - top[:, None])
        fade = tl.exp2(highest - top)
        highest = top
        total = total * fade + tl.sum(p, 1)
        p = p.to(q.dtype.element_ty)
        faded = ()
        for part in tl.static_range(len(WIDTHS)):
            d = _lanes(part, WIDTHS)[None, :]
            values = tl.load(v + d + keys * V_STRIDE, mask=d < DIM, other=0.0)
            faded += (tl.dot(p, values, sums[part] * fade[:, None], input_precision="ieee"),)
        sums = faded

    norm = 1.0 / tl.where(total == 0, 1.0, total)[:, None]
    a += zero
    out += ((b * frames + start) * HEADS + head) * DIM
    for part in tl.static_range(len(WIDTHS)):
        d = _lanes(part, WIDTHS)[None, :]
        inside = (start + a < frames)[:, None] & (d < DIM)
        tl.store(out + a[:, None] * (HEADS * DIM) + d, (sums[part] * norm).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _times_bias(x, rows, inside, bias, DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    d = tl.arange(0, BLOCK_D)
    weights = tl.load(bias + d, mask=d < DIM, other=0.0).to(tl.float32)
    values = tl.load(x + d[None, :] + rows[:, None], mask=inside[:, None] & (d < DIM)[None, :], other=0.0)
    return tl.sum(values.to(tl.float32) * weights[None, :], 1)


@triton.jit(do_not_specialize=["k_batch", "k_head", "r_head", "frames", "padded", "key_programs"])
def _bias_scores(
    k,
    r,
    bias_u,
    bias_v,
    lengths,
    content,
    position,
    scale,
    k_batch,
    k_head,
    r_head,
    frames,
    padded,
    key_programs,
    K_STRIDE: tl.constexpr,
    R_STRIDE: tl.constexpr,
    UNIT: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """content[b, h, j] = scale u[h].k[b, j, h], -inf for keys behind the length; position[h, m] = v[h].r[m, h]."""
    n = tl.arange(0, ROWS)
    if tl.program_id(0) < key_programs:
        blocks = tl.cdiv(padded, ROWS)
        row = (tl.program_id(0) // blocks).to(tl.int64)
        b = row // HEADS
        head = row % HEADS
        j = tl.program_id(0) % blocks * ROWS + n
        length = frames
        if lengths is not None:
            length = tl.minimum(tl.load(lengths + b), frames).to(tl.int32)
        keys = k + (b * k_batch + head * k_head) * UNIT
        scores = _times_bias(keys, j.to(tl.int64) * K_STRIDE, j < length, bias_u + head * DIM, DIM, BLOCK_D)
        tl.store(content + row * padded + j, tl.where(j < length, scores * scale, float("-inf")), mask=j < padded)
    else:
        count = 2 * frames - 1
        blocks = tl.cdiv(count, ROWS)
        head = ((tl.program_id(0) - key_programs) // blocks).to(tl.int64)
        m = (tl.program_id(0) - key_programs) % blocks * ROWS + n
        places = r + head * r_head * UNIT
        scores = _times_bias(places, m.to(tl.int64) * R_STRIDE, m < count, bias_v + head * DIM, DIM, BLOCK_D)
        tl.store(position + head * count + m, scores, mask=m < count)


def _widths(head_dim: int) -> tuple[int, ...]:
    """The head dim, rounded up to 16, in parts of 64 and smaller powers of two.

    A part wider than the M = 64 queries would make Triton spread the warps over it, where each row should be one's own.
    """
    whole, rest = divmod(16 * triton.cdiv(head_dim, 16), 64)
    return (64,) * whole + tuple(width for width in (32, 16) if rest & width)


def _unit(tensors: tuple[Tensor, ...]) -> int:
    """The elements in 16 bytes where every row of every head starts on a multiple of them, else 1."""
    unit = 16 // tensors[0].element_size()
    return unit if all(stride % unit == 0 for t in tensors for stride in t.stride()[:-1]) else 1


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    bias_u: Tensor,
    bias_v: Tensor,
    lengths: Tensor | None,
    scale: float,
) -> Tensor:
    batch, frames, heads, dim = q.shape
    q, k, v, r = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v, r))
    lengths = None if lengths is None else lengths.contiguous()
    # Without tensor cores a tile is small, and q comes by chunks: a held copy would take its registers.
    m, n, chunk = (32, 16, 32) if q.element_size() == 4 else (64, 32, 0)
    padded = n * triton.cdiv(frames, n)
    out = q.new_empty(q.shape)
    content = q.new_empty(batch, heads, padded, dtype=torch.float32)
    position = q.new_empty(heads, 2 * frames - 1, dtype=torch.float32)

    unit = _unit((q, k, v, r))
    (q_batch, q_head), (k_batch, k_head), (v_batch, v_head) = ((t.stride(0) // unit, t.stride(2) // unit) for t in (q, k, v))
    r_head = r.stride(1) // unit
    shared = {"K_STRIDE": k.stride(1), "R_STRIDE": r.stride(0), "UNIT": unit, "HEADS": heads, "DIM": dim}
    key_programs = batch * heads * triton.cdiv(padded, ROWS)
    with on_device_of(q):
        _bias_scores[(key_programs + heads * triton.cdiv(2 * frames - 1, ROWS),)](
            k,
            r,
            bias_u.contiguous(),
            bias_v.contiguous(),
            lengths,
            content,
            position,
            scale * LOG2E,
            k_batch,
            k_head,
            r_head,
            frames,
            padded,
            key_programs,
            BLOCK_D=triton.next_power_of_2(dim),
            ROWS=ROWS,
            **shared,
        )
        _relpos_attention[(triton.cdiv(frames, m) * heads * batch,)](
            q,
            k,
            v,
            r,
            content,
            position,
            lengths,
            out,
            scale * LOG2E,
            q_batch,
            q_head,
            k_batch,
            k_head,
            v_batch,
            v_head,
            r_head,
            frames,
            0,
            Q_STRIDE=q.stride(1),
            V_STRIDE=v.stride(1),
            WIDTHS=_widths(dim),
            CHUNK=chunk,
            M=m,
            N=n,
            num_warps=4,
            num_stages=2,
            **shared,
        )
    return out

"""relpos_attention as one pass of online softmax, with the relative shift done in registers.

For M queries from i0 and N keys from j0 let P[a, c] = q[i0 + a] . r[T - M - i0 + j0 + c]. Query a needs columns
M - 1 - a to M - 1 - a + N - 1 of it: each row starts a column before the row above. What makes this cheap:

- A key tile shares all but N columns of P with the tile before. They are kept, so that the position scores cost what
  the content scores cost, and not (M + N) / N times that.
- P is kept in blocks of N columns whose rows are rotated. All key tiles want the same rotation of a row, and take its
  N values from two neighbouring blocks, the column deciding from which.
- A rotation by s is log2(N) exchanges, one for each bit of the column, from the lowest: column c = b + s (mod N) is to
  go to b, and whether bit t of c must change follows from s and the bits of b below, as bit t of s + (b mod 2^t). Two
  columns that differ in one bit lie in one thread, or in two lanes of one quad (bits 1 and 2 of what tensor cores
  accumulate), never behind shared memory. An exchange is written as the sum of the two less one's own, of which the
  compiler leaves a select.

The scores are scale (q.k + q.r + u.k + v.r). The bias terms, a number for each key and each position, come from a small
kernel before this one: one copy of q serves both products, and no sum q + u is rounded to the dtype of the tensor
cores. The key's term is -inf behind the length, which is all the masking that scores need.

Arithmetic, not measurement: 32 rows of 438 frames with 8 heads of 160 in bfloat16 are 47 GFLOP, 190 tiles of 64 x 32
for each of an H200's 132 SMs. A tile is 480 cycles of tensor cores, 700 instructions of each warp and 30 kB from L2.
With two programs an SM the instructions bound it: 100 us at 1.7 GHz, and 9 us for the bias terms, which read k from
HBM once more. Writing and reading the T x 2T scores would by itself take 250 us.

Heads wider than 176 spill a few registers, as an accumulator of 64 x 256 leaves too few for the rest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.launch import on_device_of, unit

LOG2E = 1.4426950408889634
ROWS = 32
"""Rows of k or r a program of the small kernel multiplies with the biases."""


@triton.jit
def _columns(shift, COUNT: tl.constexpr, M: tl.constexpr):
    """shift[a] + b for b < COUNT.

    The multiples of 8 in b, which tell a thread's registers apart, are added last: a constant costs an instruction,
    where an element of a longer arange costs a register throughout.
    """
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
def _zeros(M: tl.constexpr, N: tl.constexpr):
    """Triton 3.6 takes an element of a tuple for a size only under a name."""
    return tl.zeros((M, N), tl.float32)


@triton.jit
def _add_product(c, held, q, own, x, rows, DIM: tl.constexpr, WIDTHS: tl.constexpr, CHUNK: tl.constexpr):
    """c + Q X^T, with X at offsets `rows` of x, and Q `held` in parts, or read at offsets `own` of q in chunks."""
    if CHUNK == 0:
        for part in tl.static_range(len(WIDTHS)):
            d = _lanes(part, WIDTHS)[None, :]
            other = tl.load(x + d + rows, mask=d < DIM, other=0.0)
            c = tl.dot(held[part], tl.trans(other), c, input_precision="ieee")
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
    """A rotated block of position scores: N columns, from the row of r that is `first` behind its middle one.

    Rows beyond r's ends, which no pair of a query and a key asks for, repeat the last.
    """
    steps = tl.minimum(tl.maximum(first + tl.arange(0, N), -reach), reach)
    bias = tl.broadcast_to(tl.load(position + steps)[None, :], (M, N))
    p = _add_product(bias, held, q, own, r, steps.to(tl.int64)[:, None] * R_STRIDE, DIM, WIDTHS, CHUNK)
    return _rotate(p, shift, M, N)


@triton.jit
def _first_blocks(
    held,
    q,
    own,
    r,
    position,
    start,
    reach,
    R_STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTHS: tl.constexpr,
    CHUNK: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Of the walk of the M queries from `start`: what its first tile of keys finds to its left, and its last block.

    Blocks count from the row of r that the tile's last query needs for key 0. At the t-th key tile its last N
    queries read blocks t and t + 1, its first N blocks t + 1 and t + 2: in `left` and `right` each finds its two.
    """
    shift = M - 1 - tl.arange(0, M)
    base = 1 - M - start
    early = (tl.arange(0, M) < N)[:, None]
    below = _block(held, q, own, r, position, base, reach, shift, R_STRIDE, DIM, WIDTHS, CHUNK, M, N)
    last = _block(held, q, own, r, position, base + N, reach, shift, R_STRIDE, DIM, WIDTHS, CHUNK, M, N)
    return tl.where(early, last, below), last


@triton.jit
def _scores(
    held,
    q,
    own,
    k,
    r,
    content,
    position,
    scale,
    start,
    j,
    length,
    reach,
    left,
    last,
    K_STRIDE: tl.constexpr,
    R_STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTHS: tl.constexpr,
    CHUNK: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """Scores of the M queries from `start` with the N keys from `j`, which keys these are, and the walk's next state.

    Keys behind the length repeat the last one: finite where the row is.
    """
    n = tl.arange(0, N)
    early = (tl.arange(0, M) < N)[:, None]
    turn = M - 1 - tl.arange(0, M) + j
    new = _block(held, q, own, r, position, 1 - start + j, reach, turn, R_STRIDE, DIM, WIDTHS, CHUNK, M, N)
    right = tl.where(early, new, last)
    s = tl.where(_columns(turn & (N - 1), N, M) < N, left, right)
    keys = tl.minimum(j + n, length - 1).to(tl.int64)[:, None]
    s = _add_product(s, held, q, own, k, keys * K_STRIDE, DIM, WIDTHS, CHUNK)
    s = tl.fma(s, tl.full((M, N), scale, tl.float32), tl.broadcast_to(tl.load(content + j + n)[None, :], (M, N)))
    return s, keys, right, new


DYNAMIC = ["q_batch", "q_head", "k_batch", "k_head", "v_batch", "v_head", "r_head", "frames", "zero"]


@triton.jit(do_not_specialize=DYNAMIC)
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
    """A tile of M = 2 N queries of one head. Strides of batch and head count UNIT elements.

    `zero` is 0, unknown to the compiler. The walk over the keys starts there: if that were a known multiple of N, what
    decides about exchanges would be computed ahead of the loop, into 60 registers that there are not.
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

    q += (b * q_batch + head.to(tl.int64) * q_head) * UNIT
    k += (b * k_batch + head.to(tl.int64) * k_head) * UNIT
    v += (b * v_batch + head.to(tl.int64) * v_head) * UNIT
    r += head.to(tl.int64) * r_head * UNIT + (frames - 1).to(tl.int64) * R_STRIDE
    content += (b * HEADS + head) * (tl.cdiv(frames, N) * N)
    position += head.to(tl.int64) * (2 * frames - 1) + frames - 1

    a = tl.arange(0, M)
    # Queries beyond the frames repeat the last one and are not stored.
    own = tl.minimum(start + a, frames - 1).to(tl.int64)[:, None] * Q_STRIDE
    held = ()
    sums = ()
    for part in tl.static_range(len(WIDTHS)):
        d = _lanes(part, WIDTHS)[None, :]
        if CHUNK == 0:
            held += (tl.load(q + d + own, mask=d < DIM, other=0.0),)
        sums += (_zeros(M, WIDTHS[part]),)
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)

    left, last = _first_blocks(held, q, own, r, position, start, frames - 1, R_STRIDE, DIM, WIDTHS, CHUNK, M, N)
    for j in range(zero, length, N):
        s, keys, left, last = _scores(
            *(held, q, own, k, r, content, position, scale, start, j, length, frames - 1, left, last),
            *(K_STRIDE, R_STRIDE, DIM, WIDTHS, CHUNK, M, N),
        )
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
    # As above: what stores need is to be computed here, not kept throughout.
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


def widths(head_dim: int) -> tuple[int, ...]:
    """The head dim, rounded up to 16, in parts of 64 and smaller powers of two.

    Triton would give warps columns of a part wider than its M rows, and a row's softmax would cross them.
    """
    whole, rest = divmod(16 * triton.cdiv(head_dim, 16), 64)
    return (64,) * whole + tuple(width for width in (32, 16) if rest & width)


def bias_scores(
    k: Tensor, r: Tensor, bias_u: Tensor, bias_v: Tensor, lengths: Tensor | None, scale: float, tile: int, strides: int
) -> tuple[Tensor, Tensor]:
    """What the biases add to scores, in units of log 2 by key (batch, heads, frames up to a multiple of `tile`), and
    unscaled by position (heads, 2 * frames - 1). `strides` is the unit of those of k and r, whose last axes are dense.
    """
    batch, frames, heads, dim = k.shape
    padded = tile * triton.cdiv(frames, tile)
    content = k.new_empty(batch, heads, padded, dtype=torch.float32)
    position = k.new_empty(heads, 2 * frames - 1, dtype=torch.float32)
    key_programs = batch * heads * triton.cdiv(padded, ROWS)
    _bias_scores[(key_programs + heads * triton.cdiv(2 * frames - 1, ROWS),)](
        k,
        r,
        bias_u.contiguous(),
        bias_v.contiguous(),
        lengths,
        content,
        position,
        scale * LOG2E,
        k.stride(0) // strides,
        k.stride(2) // strides,
        r.stride(1) // strides,
        frames,
        padded,
        key_programs,
        K_STRIDE=k.stride(1),
        R_STRIDE=r.stride(0),
        UNIT=strides,
        HEADS=heads,
        DIM=dim,
        BLOCK_D=triton.next_power_of_2(dim),
        ROWS=ROWS,
    )
    return content, position


def tile_of(q: Tensor) -> tuple[int, int, int]:
    """Queries and keys of a tile, and the components of q that come at a time, 0 where they are held.

    Without tensor cores a tile is small, and q comes by chunks: a held copy would take its registers.
    """
    return (32, 16, 32) if q.element_size() == 4 else (64, 32, 0)


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
    m, n, chunk = tile_of(q)
    out = q.new_empty(q.shape)
    u = unit(q, k, v, r)
    with on_device_of(q):
        content, position = bias_scores(k, r, bias_u, bias_v, lengths, scale, n, u)
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
            q.stride(0) // u,
            q.stride(2) // u,
            k.stride(0) // u,
            k.stride(2) // u,
            v.stride(0) // u,
            v.stride(2) // u,
            r.stride(1) // u,
            frames,
            0,
            Q_STRIDE=q.stride(1),
            K_STRIDE=k.stride(1),
            V_STRIDE=v.stride(1),
            R_STRIDE=r.stride(0),
            UNIT=u,
            HEADS=heads,
            DIM=dim,
            WIDTHS=widths(dim),
            CHUNK=chunk,
            M=m,
            N=n,
            num_warps=4,
            num_stages=2,
        )
    return out

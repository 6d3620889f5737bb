"""log_mel in two kernels: one takes the waveform to power spectra, the other takes those to log-mel energies.

The first gives a warp two frames. The DFT of N real points (512) is Cooley and Tukey's, with n = 32 n1 + lane,
k = k1 + N1 k2 and N1 = N / 32:

    1. thread `lane` loads the samples 32 n1 + lane of a frame, n1 = 0 .. N1 - 1, emphasised and windowed;
    2. it transforms its N1 real values in registers; the results of N1 - k1 are the conjugates of those of k1, so
       N1 / 2 + 1 of them go on;
    3. times exp(-2 pi i k1 lane / N);
    4. for each k1 the warp transforms its 32 values across lanes in 5 exchanges (radix 2, decimation in frequency),
       which leave frequency k2 in the lane whose number is k2 with its 5 bits reversed;
    5. the power is stored in that order, k1 by k1. No shared memory, no barrier.

The second multiplies it by the mel bank, packed in the same order (`_pack_mel`), on the tensor cores and takes the log.

The transform is float32 throughout. As a matrix product it would be 40 times the arithmetic and less exact: emulated in
PyTorch on signals of three tones, the error in the log-mel of quiet bands was up to 2.4 times that of torch.fft with
float32 products and 2.9 times with TF32 ones split in three; in the order above it is torch.fft's own. The energies may
take the tensor cores because nothing cancels in them: no term is negative, and a float32 is split into two TF32 of
which only the product of the two rests, 2^-22 of the whole, is left out.

32 clips of 35 s: 129 MB in and out and 258 MB of power spectra make 90 us at the 4.3 TB/s an H200 copies at. A frame
costs the first kernel about 740 instructions of a warp (90 us of issue slots) and the second 340 (40 us) and 0.22 MFLOP
of TF32 (55 us). One kernel for both would save the traffic of the spectra, but its 170 to 255 registers a thread leave
8 warps to an SM, too few to hide the waits between its stages; these two keep 24 and 8, and each does one thing.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch._subclasses import FakeTensor

from fastspeech.kernels.launch import as_rows, on_device_of
from fastspeech.kernels.log_mel import frame_count

FRAMES = 8
ROWS = 64


@triton.constexpr_function
def _cos(k, n):
    return math.cos(2 * math.pi * k / n)


@triton.constexpr_function
def _sin(k, n):
    return math.sin(2 * math.pi * k / n)


@triton.jit
def _real_dft(x):
    """The DFT of a tuple of N real tensors: the real parts of frequencies 0 .. N / 2, the imaginary parts of
    1 .. N / 2 - 1 (the others are 0). Radix 2, decimation in time."""
    n: tl.constexpr = len(x)
    if n == 2:
        return (x[0] + x[1], x[0] - x[1]), ()
    else:
        even_re, even_im = _real_dft(x[0::2])
        odd_re, odd_im = _real_dft(x[1::2])
        quarter: tl.constexpr = n // 4
        low_re, high_re = (even_re[0] + odd_re[0],), (even_re[0] - odd_re[0],)
        low_im, high_im = (), ()
        for k in tl.static_range(1, quarter):
            c, s = _cos(k, n), _sin(k, n)
            re = tl.fma(odd_im[k - 1], s, odd_re[k] * c)
            im = tl.fma(odd_re[k], -s, odd_im[k - 1] * c)
            low_re += (even_re[k] + re,)
            low_im += (even_im[k - 1] + im,)
            high_re = (even_re[k] - re,) + high_re  # noqa: RUF005
            high_im = (im - even_im[k - 1],) + high_im  # noqa: RUF005
        return low_re + (even_re[quarter],) + high_re, low_im + (-odd_re[quarter],) + high_im  # noqa: RUF005


@triton.jit
def _angle(table, lane):
    """The (cos, sin) of each lane, from a row of the table."""
    return tl.load(table + 2 * lane), tl.load(table + 2 * lane + 1)


@triton.jit
def _turned(re, im, angle):
    """(re + i im) exp(-i angle)."""
    return tl.fma(im, angle[1], re * angle[0]), tl.fma(re, -angle[1], im * angle[0])


@triton.jit
def _lane_dft(re, im, angles, lane):
    """The DFT across the 32 lanes of axis 1, in bit-reversed order."""
    across = lane + tl.zeros_like(re).to(tl.int32)
    for stage in tl.static_range(5):
        sign = tl.where((lane & (16 >> stage)) == 0, 1.0, -1.0)
        partner = across ^ (16 >> stage)
        re = tl.fma(re, sign, tl.gather(re, partner, 1))
        im = tl.fma(im, sign, tl.gather(im, partner, 1))
        if stage < 4:
            re, im = _turned(re, im, angles[stage])
    return re, im


# `left` and `terms` are not specialised either: with their divisors unknown, Triton leaves neighbouring lanes to
# neighbouring threads, as the exchanges want them, where it would give a thread two for the sake of vector accesses.
@triton.jit(do_not_specialize=["samples", "frames", "x_stride", "left", "terms"])
def _power_spectrum(
    x,
    lengths,
    window,
    twiddles,
    power,
    samples,
    frames,
    x_stride,
    left,
    terms,
    preemphasis,
    N: tl.constexpr,
    HOP: tl.constexpr,
    TAPS: tl.constexpr,
    PER_FRAME: tl.constexpr,
    FRAMES: tl.constexpr,
):
    N1: tl.constexpr = N // 32
    ORIGIN: tl.constexpr = 0 if PER_FRAME else N // 2
    blocks = tl.cdiv(frames, FRAMES)
    b = tl.program_id(0) // blocks
    frame = tl.program_id(0) % blocks * FRAMES + tl.arange(0, FRAMES)[:, None]
    lane = tl.arange(0, 32)[None, :]
    length = samples
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + b), samples).to(tl.int32)

    # Points that no tap of the window covers, or outside [0, length), are 0.
    first = frame * HOP + lane - ORIGIN
    at = x + b.to(tl.int64) * x_stride + first
    points = ()
    for n1 in tl.static_range(N1):
        tap = n1 * 32 + lane - left
        inside = (tap >= 0) & (tap < TAPS) & (first >= -32 * n1) & (first < length - 32 * n1)
        points += (tl.load(at + 32 * n1, mask=inside, other=0.0),)
    if PER_FRAME:
        total = points[0]
        for n1 in tl.static_range(1, N1):
            total += points[n1]
        mean = tl.sum(total, axis=1, keep_dims=True) / TAPS
    for n1 in tl.static_range(N1):
        tap = n1 * 32 + lane - left
        if PER_FRAME:
            # A frame is emphasised by itself: its first sample also stands before it.
            back = tl.where(tap > 0, 1, 0)
            inside = (tap < TAPS) & (first < length - 32 * n1 + back)
            before = tl.load(at + 32 * n1 - back, mask=inside, other=0.0) - mean
            here = points[0] - mean
        else:
            inside = (tap >= 0) & (tap < TAPS) & (first > -32 * n1) & (first < length - 32 * n1)
            before = tl.load(at + 32 * n1 - 1, mask=inside, other=0.0)
            here = points[0]
        weight = tl.load(window + tap, mask=(tap >= 0) & (tap < TAPS), other=0.0)
        # Taken from the front, put in at the back.
        points = points[1:] + (tl.fma(before, -preemphasis, here) * weight,)  # noqa: RUF005

    re, im = _real_dft(points)
    nothing = tl.zeros_like(re[0])
    im = (nothing,) + im + (nothing,)  # noqa: RUF005
    angles = ()
    for stage in tl.static_range(4):
        angles += (_angle(twiddles + (N1 // 2 + 1 + stage) * 64, lane),)
    row = power + (b.to(tl.int64) * frames + frame) * terms + lane
    for k1 in tl.static_range(N1 // 2 + 1):
        r, i = _turned(re[k1], im[k1], _angle(twiddles + k1 * 64, lane))
        r, i = _lane_dft(r, i, angles, lane)
        tl.store(row + k1 * 32, tl.fma(r, r, i * i), mask=frame < frames)


@triton.jit
def _pack_mel(mel, packed, stride_m, stride_k, M: tl.constexpr, N: tl.constexpr, BLOCK_M: tl.constexpr):
    """Row k1 * 32 + lane of `packed` is the bank's column of the frequency whose power stands there."""
    N1: tl.constexpr = N // 32
    k1 = tl.program_id(0)
    lane = tl.arange(0, 32)[:, None]
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    k2 = (lane & 1) << 4 | (lane & 2) << 2 | lane & 4 | (lane & 8) >> 2 | lane >> 4
    k = k1 + N1 * k2
    # A frequency above N / 2 stands for its mirror image; residues 0 and N1 / 2 hold both, of which one counts.
    once = k <= tl.where(k1 % (N1 // 2) == 0, N // 2, N)
    source = mel + m * stride_m + tl.where(k <= N // 2, k, N - k) * stride_k
    value = tl.load(source, mask=(m < M) & once, other=0.0)
    tl.store(packed + (k1 * 32 + lane) * M + m, value, mask=m < M)


@triton.jit
def _split(value):
    """A float32 as the sum of a TF32 and a rest, of which TF32 loses 2^-23 of the value at most."""
    top = ((value.to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
    return top, value - top


@triton.jit(do_not_specialize=["count"])
def _log_energy(
    power,
    mel,
    out,
    count,
    log_offset,
    log_floor,
    K: tl.constexpr,
    M: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
    k = tl.arange(0, 32)
    energy = tl.zeros((ROWS, BLOCK_M), tl.float32)
    # The small products have a sum of their own: tensor cores round a sum towards 0 each time they add to it.
    rest = tl.zeros((ROWS, BLOCK_M), tl.float32)
    for start in range(0, K, 32):
        a = tl.load(power + row * K + start + k[None, :], mask=row < count, other=0.0)
        b = tl.load(mel + (start + k[:, None]) * M + m, mask=m < M, other=0.0)
        a, a_rest = _split(a)
        b, b_rest = _split(b)
        energy = tl.dot(a, b, energy, input_precision="tf32")
        rest = tl.dot(a_rest, b, rest, input_precision="tf32")
        rest = tl.dot(a, b_rest, rest, input_precision="tf32")
    result = tl.log(tl.maximum(energy + rest + log_offset, log_floor))
    tl.store(out + row * M + m, result, mask=(row < count) & (m < M))


_tables: dict[tuple[int, torch.device], Tensor] = {}


def _twiddles(n_fft: int, device: torch.device) -> Tensor:
    """(cos, sin) pairs by lane: a row for exp(-2 pi i k1 lane / n_fft), k1 = 0 .. n_fft / 64, and one for each turn
    between the exchanges across lanes. Computed once a size and device, in float64."""
    key = (n_fft, device)
    if key not in _tables:
        turns = [k1 * lane / n_fft for k1 in range(n_fft // 64 + 1) for lane in range(32)]
        turns += [lane % s / (2 * s) if lane & s else 0.0 for s in (16, 8, 4, 2) for lane in range(32)]
        angles = [2 * math.pi * turn for turn in turns]
        table = torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float32, device=device)
        if isinstance(table, FakeTensor):
            return table
        _tables[key] = table
    return _tables[key]


def launch(
    waveform: Tensor,
    lengths: Tensor | None,
    window: Tensor,
    mel: Tensor,
    n_fft: int,
    hop: int,
    preemphasis: float,
    per_frame: bool,
    log_offset: float,
    log_floor: float,
) -> Tensor:
    batch, samples = waveform.shape
    bins = mel.shape[0]
    taps = window.shape[0]
    frames = frame_count(samples, taps, n_fft, hop, per_frame)
    rows = as_rows(waveform)
    terms = n_fft // 2 + 32
    power = waveform.new_empty(batch * frames, terms)
    packed = mel.new_empty(terms, bins)
    out = waveform.new_empty(batch, frames, bins)
    block = min(triton.next_power_of_2(max(bins, 16)), 128)
    columns = triton.cdiv(bins, block)
    with on_device_of(waveform):
        _power_spectrum[(batch * triton.cdiv(frames, FRAMES),)](
            rows,
            None if lengths is None else lengths.contiguous(),
            window.contiguous(),
            _twiddles(n_fft, waveform.device),
            power,
            samples,
            frames,
            rows.stride(0),
            0 if per_frame else (n_fft - taps) // 2,
            terms,
            preemphasis,
            N=n_fft,
            HOP=hop,
            TAPS=taps,
            PER_FRAME=per_frame,
            FRAMES=FRAMES,
            num_warps=FRAMES // 2,
        )
        _pack_mel[(n_fft // 64 + 1, columns)](
            mel, packed, mel.stride(0), mel.stride(1), M=bins, N=n_fft, BLOCK_M=block, num_warps=4
        )
        _log_energy[(triton.cdiv(batch * frames, ROWS), columns)](
            power,
            packed,
            out,
            batch * frames,
            log_offset,
            log_floor,
            K=terms,
            M=bins,
            ROWS=ROWS,
            BLOCK_M=block,
            # 32 sums a thread or fewer: with 64 of each kind Triton 3.6 spills.
            num_warps=max(block // 16, 4),
        )
    return out

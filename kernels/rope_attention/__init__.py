"""rope_attention: attention whose queries and keys are rotated as they are read."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.rope_attention.reference import rope_attention as _reference


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inv_freq: Tensor | None,
    q_positions: Tensor | None,
    k_positions: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    window: int,
    interleaved: bool,
    scale: float,
) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _triton_limits(q: Tensor, *rest: object) -> str | None:
    if q.element_size() > 4:
        return "float64 is served by the reference"
    if q.shape[3] > 256:
        return f"head dim {q.shape[3]}, at most 256 fit a tile"
    return None


def _backward_limits(q: Tensor, *rest: object) -> str | None:
    if q.shape[3] > 128:
        return f"head dim {q.shape[3]}, of at most 128 the gradients of a tile of keys stay in registers"
    return None


def _cuda_limits(q: Tensor, *rest: object) -> str | None:
    return "float64 is served by the reference" if q.element_size() > 4 else None


_op = Op(
    _reference,
    _fake,
    (
        Implementation(
            "triton",
            "fastspeech.kernels.rope_attention.triton",
            _triton_limits,
            backward="fastspeech.kernels.rope_attention.triton_backward",
            backward_limits=_backward_limits,
            backward_outputs=True,
        ),
        Implementation("cuda", "fastspeech.kernels.rope_attention.cuda", _cuda_limits, on_cpu=True, on_cuda=False),
    ),
)


def rope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inv_freq: Tensor | None = None,
    q_positions: Tensor | None = None,
    k_positions: Tensor | None = None,
    lengths: Tensor | None = None,
    causal: bool = False,
    window: int = 0,
    interleaved: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Attention with rotary position embeddings (Su et al. 2021), of which each head may rotate a part only.

    Pair m of a head, at dims (2m, 2m + 1) where interleaved and (m, pairs + m) where not, is turned by the angle
    position * inv_freq[m]; the dims behind 2 * pairs stay as they are. Angles, cosines and sines are float32. Query i
    stands at key i + keys - queries: it sees that key and the earlier ones where `causal`, and of them only the last
    `window` where that is set. Each key/value head serves heads // kv_heads consecutive heads.

    Args:
        q: (batch, queries, heads, head_dim), any strides.
        k, v: (batch, keys, kv_heads, head_dim), any strides.
        inv_freq: (pairs,), float32 or the dtype of q, 2 * pairs <= head_dim; None where q and k are rotated already
            or have no positions.
        q_positions, k_positions: (batch, queries) and (batch, keys), or (1, ...) for all rows, int64: what is
            rotated by. They do not change who sees whom. By default the keys stand at 0, 1, ...
        lengths: (batch,) int32 or int64, valid keys of each row; None where all are valid.
        causal: whether a query sees no later key.
        window: keys that a causal query sees at most, itself included; 0 for all.
        interleaved: which dims make a pair.
        scale: factor of the scores, head_dim ** -0.5 where None.

    Returns:
        (batch, queries, heads, head_dim), contiguous, in q's dtype; a query that sees no key gives 0.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit; a window without `causal`.
    """
    checks.rank("q", q, 4, "(batch, queries, heads, head_dim)")
    checks.rank("k", k, 4, "(batch, keys, kv_heads, head_dim)")
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    checks.shape("k", k, (batch, keys, kv_heads, head_dim), "(batch, keys, kv_heads, head_dim)")
    checks.shape("v", v, tuple(k.shape), "k's shape")
    checks.floating(q=q, k=k, v=v)
    checks.lengths(lengths, batch, q.device)
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"{kv_heads} key/value heads do not divide {heads} heads")
    if window < 0 or (window and not causal):
        raise ValueError(f"window must be 0, or positive with causal=True; got {window}")
    checks.rotation(inv_freq, q)
    for name, positions, tokens in (("q_positions", q_positions, queries), ("k_positions", k_positions, keys)):
        _check_positions(name, positions, batch, tokens, q.device)
    scale = head_dim**-0.5 if scale is None else scale
    return _op(q, k, v, inv_freq, q_positions, k_positions, lengths, causal, window, interleaved, scale)


def _check_positions(name: str, positions: Tensor | None, batch: int, tokens: int, device: torch.device) -> None:
    if positions is None:
        return
    if positions.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {positions.dtype}")
    if tuple(positions.shape) not in ((batch, tokens), (1, tokens)) or positions.device != device:
        raise ValueError(
            f"{name} must be ({batch}, {tokens}) or (1, {tokens}) on {device}, "
            f"got {tuple(positions.shape)} on {positions.device}"
        )

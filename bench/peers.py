"""What people would call in place of an op: contenders beside its own implementations.

Each is made from the op's inputs, and gives the op's outputs; None where it has no way to compute that case. One that
is "alone" is given its queries and keys rotated and padded, which an op does itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.bench.timing import Function
from fastspeech.kernels.dispatch import use_backend
from fastspeech.kernels.paged_attention import paged_attention
from fastspeech.kernels.rope_attention import rope_attention
from fastspeech.kernels.rope_attention.reference import rotate, turns

Inputs = dict[str, Any]


def _materialised_bias(inputs: Inputs) -> Function:
    """Transformer-XL attention as models without a kernel for it run: the positions' scores shifted in memory and
    handed to SDPA as a bias (Dai et al. 2019, appendix B)."""
    q, k, v, r, bias_u, bias_v, lengths = (
        inputs[name] for name in ("q", "k", "v", "r", "bias_u", "bias_v", "lengths")
    )
    batch, frames, heads, head_dim = q.shape
    scale = inputs.get("scale") or head_dim**-0.5
    hidden = None
    if lengths is not None:
        hidden = (torch.arange(frames, device=q.device) >= lengths[:, None])[:, None, None]

    def run() -> Tensor:
        by_position = (q + bias_v).transpose(1, 2) @ r.permute(1, 2, 0)
        padded = F.pad(by_position, (1, 0)).view(batch, heads, 2 * frames, frames)
        bias = padded[:, :, 1:].reshape(batch, heads, frames, 2 * frames - 1)[..., :frames] * scale
        if hidden is not None:
            bias = bias.masked_fill(hidden, -torch.inf)
        query = (q + bias_u).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, k.transpose(1, 2), v.transpose(1, 2), bias, scale=scale)
        return out.transpose(1, 2).contiguous()

    return run


def _rotated_sdpa(inputs: Inputs) -> Function | None:
    """Rotation, then SDPA, with heads padded to a multiple of 8 for its flash kernel."""
    q, k, v, inv_freq = (inputs[name] for name in ("q", "k", "v", "inv_freq"))
    queries, keys, head_dim = q.shape[1], k.shape[1], q.shape[3]
    causal = bool(inputs.get("causal")) and queries > 1
    if inputs.get("lengths") is not None or inputs.get("window") or (causal and queries != keys):
        return None
    scale = inputs.get("scale") or head_dim**-0.5
    pad = -head_dim % 8

    def turned(x: Tensor, positions: Tensor | None, first: int) -> Tensor:
        if inv_freq is None:
            return x
        if positions is None:
            positions = torch.arange(first, first + x.shape[1], device=x.device)[None]
        return rotate(x, turns(inv_freq, positions), inputs.get("interleaved", True))

    def run() -> Tensor:
        sides = turned(q, inputs.get("q_positions"), keys - queries), turned(k, inputs.get("k_positions"), 0), v
        query, key, value = (F.pad(side, (0, pad)).transpose(1, 2) for side in sides)
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale, enable_gqa=grouped)
        return out[..., :head_dim].transpose(1, 2).contiguous()

    return run


def _handed_to_sdpa(call: Callable[..., Any], inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that an op's reference gives SDPA."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    original = F.scaled_dot_product_attention

    def attend(*args: Any, **options: Any) -> Tensor:
        seen.append((args, options))
        return original(*args, **options)

    with mock.patch.object(F, "scaled_dot_product_attention", attend), use_backend("reference"):
        call(**inputs)
    return seen[-1]


def _flash_alone(inputs: Inputs) -> Function | None:
    """SDPA's flash kernel at the nearest head dim that it has, a multiple of 8; it takes no masks."""
    (query, key, value, mask), options = _handed_to_sdpa(rope_attention, inputs)
    if mask is not None or query.shape[1] != key.shape[1]:
        return None
    head_dim = query.shape[3]
    query, key, value = (F.pad(side, (0, -head_dim % 8)).contiguous() for side in (query, key, value))
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def run() -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            out = F.scaled_dot_product_attention(query, key, value, **options)
        return out[..., :head_dim].transpose(1, 2)

    return run


def _flash_attn(inputs: Inputs) -> Function | None:
    """The package of that name."""
    if importlib.util.find_spec("flash_attn") is None or inputs["q"].dtype == torch.float32:
        return None
    (query, key, value, mask), options = _handed_to_sdpa(rope_attention, inputs)
    if mask is not None:
        return None
    from flash_attn import flash_attn_func

    head_dim = query.shape[3]
    sides = [F.pad(side, (0, -head_dim % 8)).transpose(1, 2).contiguous() for side in (query, key, value)]

    def run() -> Tensor:
        out = flash_attn_func(*sides, softmax_scale=options["scale"], causal=options["is_causal"])
        return out[..., :head_dim]

    return run


def _contiguous_cache(inputs: Inputs) -> Function:
    """SDPA over keys and values that lie in a line, as a static cache holds them, with a mask."""
    (query, keys, values, mask), options = _handed_to_sdpa(paged_attention, inputs)
    rows, tokens, heads, head_dim = inputs["q"].shape
    kv_heads = keys.shape[1]
    query, keys, values = (side.contiguous() for side in (query, keys, values))

    def run() -> Tensor:
        out = F.scaled_dot_product_attention(query, keys, values, mask, **options)
        by_token = out.unflatten(2, (tokens, heads // kv_heads)).transpose(1, 2)
        return by_token.reshape(rows, tokens, heads, head_dim)

    return run


def _convolution_module(inputs: Inputs) -> Function | None:
    """transformers' layer, without its projections."""
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers import ParakeetEncoderConfig
    from transformers.models.parakeet.modeling_parakeet import ParakeetEncoderConvolutionModule

    x, weight, bias, lengths = (inputs[name] for name in ("x", "weight", "bias", "lengths"))
    channels, taps = weight.shape
    config = ParakeetEncoderConfig(hidden_size=channels, conv_kernel_size=taps)
    module: Any = ParakeetEncoderConvolutionModule(config).to(x).eval()
    module.pointwise_conv1, module.pointwise_conv2 = nn.Identity(), nn.Identity()
    module.depthwise_conv.weight.copy_(weight[:, None])
    module.depthwise_conv.bias.copy_(bias)
    module.norm.eps = 0.0
    mask = None
    if lengths is not None:
        valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        mask = (valid[:, None, :] & valid[:, :, None])[:, None]
    return lambda: module(x, mask)


def _rms_norm(inputs: Inputs) -> Function:
    """The sum, then PyTorch's fused norm."""
    x, delta, weight, eps = (inputs[name] for name in ("x", "delta", "weight", "eps"))

    def run() -> tuple[Tensor, Tensor]:
        total = x if delta is None else x + delta
        return total, F.rms_norm(total, weight.shape, weight, eps)

    return run


def _embeddings(inputs: Inputs) -> Function:
    """As transformers' layer: rows of an `nn.Embedding`, summed in its dtype."""
    ids, table, offsets, pad_id = (inputs[name] for name in ("ids", "table", "offsets", "pad_id"))
    return lambda: F.embedding(torch.where(ids == pad_id, ids, ids + offsets), table, pad_id).sum(-2)


def _nearest_by_cdist(inputs: Inputs) -> Function:
    """As transformers' Mimi: distances by `torch.cdist`, level by level."""
    latents, codebooks, splits = (inputs[name] for name in ("latents", "codebooks", "splits"))

    def run() -> Tensor:
        codes = []
        levels = iter(codebooks)
        for latent, count in zip(latents, splits, strict=True):
            for _ in range(count):
                codebook = next(levels)
                codes.append(torch.cdist(latent[None], codebook[None])[0].argmin(-1))
                latent = latent - F.embedding(codes[-1], codebook)
        return torch.stack(codes, -1)

    return run


def _conv1d(inputs: Inputs) -> Function:
    """A convolution with channels before time, as transformers' Mimi has it, behind what the last call saw."""
    x, state = (inputs[name].transpose(1, 2).contiguous() for name in ("x", "state"))
    residual = None if inputs["residual"] is None else inputs["residual"].transpose(1, 2).contiguous()
    channels = inputs["x"].shape[2]
    weight = inputs["weight"].unflatten(1, (-1, channels)).transpose(1, 2).contiguous()
    bias, stride, elu = (inputs[name] for name in ("bias", "stride", "elu"))

    def run() -> tuple[Tensor, Tensor]:
        seen = torch.cat([state, F.elu(x) if elu else x], 2)
        y = F.conv1d(seen, weight, bias, stride)
        last = seen[:, :, x.shape[2] :].clone()
        return (y if residual is None else y + residual).transpose(1, 2), last.transpose(1, 2)

    return run


def _stft(inputs: Inputs) -> Function | None:
    """`torch.stft` and a product with the bank, as transformers' extractor of CohereAsr."""
    if inputs["per_frame"]:
        return None
    names = "waveform", "lengths", "window", "mel", "n_fft", "hop", "preemphasis", "log_offset"
    waveform, lengths, window, mel, n_fft, hop, preemphasis, log_offset = (inputs[name] for name in names)

    def run() -> Tensor:
        emphasised = torch.cat([waveform[:, :1], waveform[:, 1:] - preemphasis * waveform[:, :-1]], 1)
        if lengths is not None:
            behind = torch.arange(waveform.shape[1], device=waveform.device) >= lengths[:, None]
            emphasised = emphasised.masked_fill(behind, 0)
        spectrum = torch.stft(
            emphasised, n_fft, hop, len(window), window, pad_mode="constant", return_complex=True, center=True
        )
        return (mel @ spectrum.abs().square() + log_offset).log().transpose(1, 2)

    return run


PEERS: dict[str, dict[str, Callable[[Inputs], Function | None]]] = {
    "causal_conv": {"conv1d": _conv1d},
    "conformer_conv": {"transformers' layer": _convolution_module},
    "embed_sum": {"transformers' layer": _embeddings},
    "log_mel": {"torch.stft": _stft},
    "paged_attention": {"SDPA alone, contiguous cache": _contiguous_cache},
    "relpos_attention": {"materialised bias, SDPA": _materialised_bias},
    "residual_rms_norm": {"sum, rms_norm": _rms_norm},
    "residual_vq": {"cdist": _nearest_by_cdist},
    "rope_attention": {
        "rotation, SDPA": _rotated_sdpa,
        "flash SDPA alone": _flash_alone,
        "flash-attn alone": _flash_attn,
    },
}
"""By op."""

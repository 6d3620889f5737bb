"""Fused kernels for speech recognition, one room an op, each beside its plain PyTorch meaning.

Importing this package imports no kernel and not Triton: an implementation is loaded by the first call it serves.
The record of an op is `SPEC` in `fastspeech.kernels.<op>.spec`.
"""

from fastspeech.kernels.causal_conv import causal_conv
from fastspeech.kernels.cmvn import cmvn
from fastspeech.kernels.conformer_conv import conformer_conv
from fastspeech.kernels.dispatch import BACKENDS, BackendError, backend, use_backend
from fastspeech.kernels.embed_sum import embed_sum
from fastspeech.kernels.log_mel import log_mel
from fastspeech.kernels.op import OPS
from fastspeech.kernels.page_append import page_append
from fastspeech.kernels.page_fork import page_fork
from fastspeech.kernels.paged_attention import paged_attention
from fastspeech.kernels.relpos_attention import relpos_attention
from fastspeech.kernels.residual_layer_norm import residual_layer_norm
from fastspeech.kernels.residual_rms_norm import residual_rms_norm
from fastspeech.kernels.residual_vq import residual_vq
from fastspeech.kernels.rope_attention import rope_attention
from fastspeech.kernels.tiled_linear import tiled_linear

__all__ = [
    "BACKENDS",
    "OPS",
    "BackendError",
    "backend",
    "causal_conv",
    "cmvn",
    "conformer_conv",
    "embed_sum",
    "log_mel",
    "page_append",
    "page_fork",
    "paged_attention",
    "relpos_attention",
    "residual_layer_norm",
    "residual_rms_norm",
    "residual_vq",
    "rope_attention",
    "tiled_linear",
    "use_backend",
]

"""Kyutai STT of a few thousand random weights: the sizes of transformers' own tests, and windows that soon wrap."""

from typing import Any, TypeVar

import torch
import transformers
from torch import nn

Codec = TypeVar("Codec", bound=nn.Module)

CODEC: dict[str, Any] = {
    "hidden_size": 16,
    "num_filters": 8,
    "upsampling_ratios": [8, 4],
    "codebook_size": 16,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "sliding_window": 4,
    "upsample_groups": 16,
}
"""A codec of 64 samples a frame that attends to 4 latents, which are 2 frames."""


def hf_codec(seed: int = 0, **options: Any) -> transformers.MimiModel:
    """transformers' codec, with weights that make codes depend on everything that leads to them."""
    torch.manual_seed(seed)
    return spread(transformers.MimiModel(transformers.MimiConfig(**(CODEC | options))).eval())


@torch.no_grad()
def spread(codec: Codec) -> Codec:
    """`codec` with layer scales of about 1 and codebooks about as wide as what they meet; a new one has 0.01 and 0."""
    state = codec.state_dict()
    for name, tensor in state.items():
        if name.endswith("layer_scale.scale"):
            tensor.normal_(1.0, 0.1)
        elif name.endswith("cluster_usage"):
            # Where hardly anything was counted, the least count divides.
            tensor.uniform_(0.5, 8.0)[::7] = 0
            state[name.replace("cluster_usage", "embed_sum")].normal_().mul_(tensor.clamp(min=1e-5)[:, None])
        elif "layernorm" in name:
            tensor.normal_(float(name.endswith("weight")), 0.1)
    return codec


def checkpoint_names(codec: transformers.MimiModel) -> dict[str, torch.Tensor]:
    """The encoder half's weights under the names of files; transformers 5.23 groups its modules otherwise in memory."""
    halves = {"encoder.encoder_seanet.": "encoder.", "encoder.": "", "quantizer.": "quantizer."}
    names = {}
    for key, tensor in codec.state_dict().items():
        half = next((half for half in halves if key.startswith(half)), None)
        if half is not None:
            names[halves[half] + key.removeprefix(half)] = tensor
    return names

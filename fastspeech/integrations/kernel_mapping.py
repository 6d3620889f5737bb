"""Our layers in the mapping of the `kernels` package, by which models exchange layers that they declare by name."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from fastspeech.kernels import residual_rms_norm

_CAPABILITY = 80
"""Of the oldest GPU for which Triton kernels are built here, in the unit of the `kernels` package."""


def register() -> None:
    """Make our layers known to `kernels.kernelize`, and so to `use_kernels=True` of transformers' `from_pretrained`.

    There is one: "RMSNorm", by `residual_rms_norm`, on CUDA devices of compute capability 8.0 and newer, for inference
    and training, under `torch.compile` too. It comes before a layer of that name that is registered for older devices,
    too. Most language models of transformers declare their norms so. The four families of this package declare none but
    activations, which are one launch already: `fastspeech.accelerate` serves these models.

    Raises:
        ImportError: there is no `kernels` package, or `import kernels` finds something else, as it does in a folder
            that has another of that name.
    """
    try:
        import kernels
    except ImportError as error:
        raise ImportError("the mapping is that of the kernels package: pip install kernels") from error
    if not hasattr(kernels, "register_kernel_mapping"):
        raise ImportError(f"`import kernels` finds {kernels.__file__}, which is not the kernels package")
    properties = kernels.CUDAProperties(min_capability=_CAPABILITY, max_capability=sys.maxsize)
    device = kernels.Device(type="cuda", properties=properties)
    kernels.register_kernel_mapping({"RMSNorm": {device: _Repository(RMSNorm, hasattr(kernels, "FuncRepository"))}})


class RMSNorm(nn.Module):
    """What takes the place of a layer's forward, with that layer as `self`, and so has no state of its own."""

    has_backward = True
    can_torch_compile = True

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        """x / sqrt(mean(x^2) + variance_epsilon) * weight over the last axis, in hidden_states' dtype; the layer's own
        forward where the weight has another."""
        if hidden_states.dtype != self.weight.dtype:
            return type(self).forward(self, hidden_states)
        return residual_rms_norm(hidden_states, None, self.weight, self.variance_epsilon)[1]


class _Repository:
    """What the mapping takes for a place on the hub, and is this file."""

    def __init__(self, layer: type[nn.Module], classes: bool) -> None:
        self.layer_name = layer.__name__
        # From version 0.11 on a repository loads the layer, before that a package that has it.
        self._loaded = layer if classes else SimpleNamespace(layers=SimpleNamespace(**{self.layer_name: layer}))

    def load(self) -> Any:
        return self._loaded

    def __str__(self) -> str:
        return f"fastspeech (layer `{self.layer_name}`)"

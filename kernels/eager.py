"""Where the CPU may compute an op as fast as it can, in memory that it overwrites."""

from __future__ import annotations

import torch
from torch import Tensor


def overwritable(*given: Tensor) -> bool:
    """Whether all are float32 on the CPU, and nothing differentiates or traces what is done with them.

    float64, in which references are oracles, is computed as they are written.
    """
    if any(x.dtype != torch.float32 or x.device.type != "cpu" for x in given) or torch.compiler.is_compiling():
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in given))

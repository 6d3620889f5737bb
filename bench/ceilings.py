"""What this machine can do at most, measured: the rates that a share of the roofline is a share of."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from fastspeech.bench.timing import interleaved

_CPU_DTYPES = (torch.float32,)
_GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def measure(device: torch.device) -> dict[str, Any]:
    """{"copy_bytes_per_s": ..., "flops_per_s": {dtype: ...}} of a large copy and of large matrix products.

    float32 products are computed in float32 proper, without TF32.
    """
    gpu = device.type == "cuda"
    source = torch.ones((1 << 30 if gpu else 1 << 27) // 4, device=device)
    target = torch.empty_like(source)
    times = interleaved({"copy": lambda: target.copy_(source)}, device, budget_s=1.0)
    moved = 2 * source.numel() * source.element_size()
    rates = {}
    for dtype in _GPU_DTYPES if gpu else _CPU_DTYPES:
        size = 8192 if gpu else 1024
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        product = interleaved({"product": partial(torch.matmul, a, b)}, device, budget_s=1.0)["product"]
        rates[str(dtype).removeprefix("torch.")] = 2 * size**3 / min(product.samples)
    return {"copy_bytes_per_s": moved / min(times["copy"].samples), "flops_per_s": rates}


def bound(ceilings: dict[str, Any], moved: float, flops: float, dtype: str) -> tuple[float, str]:
    """(seconds, "memory" or "arithmetic"): the least that so many bytes and operations take, and which of them binds.

    Operations are counted at the rate of matrix products of `dtype`, the highest there is.
    """
    memory = moved / ceilings["copy_bytes_per_s"]
    rates = ceilings["flops_per_s"]
    arithmetic = flops / rates.get(dtype, rates["float32"])
    return (memory, "memory") if memory >= arithmetic else (arithmetic, "arithmetic")

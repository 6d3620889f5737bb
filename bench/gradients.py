"""Which ops need a fused backward, by arithmetic: nothing here runs a kernel.

    python -m bench.gradients

Without a fused backward the gradients come of the reference, run again. That costs more than it should where the time
which a fused backward would save is more than 1.3 times what the fused forward saves: the op as a whole then loses in
training what it wins in inference. Times are bounds. Of each PyTorch operation of the reference and its backward, run
on tensors without memory, it is the larger of the bytes it reads and writes over the bandwidth and its multiplications
over the peak; `scaled_dot_product_attention` counts as the one kernel it is on a GPU. Of a fused kernel it is that of
the record for the forward, and for the backward of what it must read and write at least (inputs, gradients) and 2.5
times the forward's arithmetic, as attention has it (Dao, FlashAttention-2, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fastspeech.kernels.aot import positional
from fastspeech.kernels.spec import Case, OpSpec, load_spec

BANDWIDTH = 4.3e12
"""Bytes a second that an H200 copies at."""

PEAK = 800e12
"""Multiplications and additions a second of its tensor cores in bfloat16, that large products reach."""

MOST = 1.3

TRAINED = ("conformer_conv", "relpos_attention", "residual_layer_norm", "residual_rms_norm", "rope_attention")
"""The ops that our models call where gradients are recorded: features, codecs, caches and steps have none."""


@dataclass(frozen=True)
class Row:
    """Bounds in microseconds of one case of an op."""

    op: str
    case: str
    forward: float
    reference: float
    recomputed: float
    backward: float
    fused: bool

    @property
    def ratio(self) -> float:
        """The time that a fused backward saves over that which the fused forward saves."""
        return (self.recomputed - self.backward) / max(self.reference - self.forward, 1e-9)


class _Bounds(TorchDispatchMode):
    """Adds up the bounds of the operations within the block."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        # A view moves nothing, nor does memory that nobody wrote to.
        made = func.overloadpacket.__name__.startswith(("empty", "new_empty"))
        if not made and not any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            count = flop_registry.get(func.overloadpacket)
            # PyTorch's counter takes the gradients of a grouped convolution for those of a full one.
            grouped = func is torch.ops.aten.convolution_backward.default and args[9] > 1
            flops = 0 if count is None or grouped else count(*args, **(kwargs or {}), out_val=found)
            moved = {id(t): t.nbytes for t in _tensors((args, kwargs, found))}
            self.seconds += _bound(sum(moved.values()), flops)
        return found


class _Attention(torch.autograd.Function):
    """Stands in for `scaled_dot_product_attention`, which on a GPU is one kernel, and so is its backward."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, share: float, bounds: _Bounds
    ) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.flops = 4 * share * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * q.shape[3]
        ctx.moved = sum(t.nbytes for t in (q, k, v, out, *([] if mask is None else [mask])))
        ctx.inputs, ctx.bounds = (q, k, v, mask), bounds
        bounds.seconds += _bound(ctx.moved, ctx.flops)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Read again, with the gradient of the output; and as many gradients written as there are inputs.
        ctx.bounds.seconds += _bound(2 * ctx.moved, 2.5 * ctx.flops)
        pairs = zip(ctx.inputs, ctx.needs_input_grad, strict=False)
        return (*(torch.empty_like(t) if need else None for t, need in pairs), None, None)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _bound(moved: float, flops: float) -> float:
    return max(moved / BANDWIDTH, flops / PEAK)


def row(spec: OpSpec, case: Case) -> Row:
    """The bounds of a case, in bfloat16 where the op takes it."""
    dtype = torch.bfloat16 if torch.bfloat16 in spec.dtypes else spec.dtypes[0]
    made = spec.inputs(dtype, torch.Generator(), **case.shape)
    inputs = {name: v.to("meta") if isinstance(v, Tensor) else v for name, v in made.items()}
    leaves = [v.requires_grad_() for v in inputs.values() if isinstance(v, Tensor) and v.is_floating_point()]
    op, args = positional(spec, inputs)
    bounds = _Bounds()

    def attention(
        q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **options: Any
    ) -> Tensor:
        return _Attention.apply(q, k, v, attn_mask, 0.5 if is_causal else 1.0, bounds)

    with bounds, mock.patch.object(F, "scaled_dot_product_attention", attention):
        outputs = op.reference(*args)
    reference = bounds.seconds
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    grads = [torch.empty_like(o) for o in outputs]
    with bounds:
        torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
    cost = spec.cost(dtype.itemsize, **case.shape)
    least = sum(t.nbytes for t in (*leaves, *leaves, *grads))
    return Row(
        op=spec.name,
        case=case.name,
        forward=1e6 * _bound(cost.bytes, cost.flops),
        reference=1e6 * reference,
        recomputed=1e6 * bounds.seconds,
        backward=1e6 * _bound(least, 2.5 * cost.flops),
        fused=any(i.backward is not None and i.backward_limits(*args) is None for i in op.implementations),
    )


def rows() -> list[Row]:
    """Every released model's case of every op that is trained through."""
    return [row(spec, case) for spec in map(load_spec, TRAINED) for case in spec.cases if case.kind == "model"]


def table() -> str:
    """The rows in Markdown, times in microseconds."""
    head = "| op | case | forward, fused | by the reference | gradients by the reference | fused, at least | ratio | |"
    lines = [head, "|---|---|--:|--:|--:|--:|--:|---|"]
    for r in rows():
        verdict = "fused" if r.fused else "wanted" if r.ratio > MOST else ""
        times = " | ".join(f"{t:.1f}" for t in (r.forward, r.reference, r.recomputed, r.backward))
        lines.append(f"| `{r.op}` | {r.case} | {times} | {r.ratio:.1f} | {verdict} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())

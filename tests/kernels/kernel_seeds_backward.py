"""A small op with a stand-in for a fused backward, and the bugs that the checks of gradients must find in it."""

from types import SimpleNamespace
from typing import Any

import torch
from kernel_seeds import _behind
from torch import Tensor

from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.spec import Case, Cost, OpSpec


def seeded_gate(x: Tensor, weight: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """x (batch, time) below lengths (batch,), times weight (1,), and the square of that."""
    valid = torch.arange(x.shape[1]) < lengths[:, None]
    y = x.masked_fill(~valid, 0) * weight
    return y, y * y


def _forward(x: Tensor, weight: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.mul(y, 1, out=x.new_empty(x.shape)) for y in seeded_gate(x, weight, lengths))


_loaded = SimpleNamespace(launch=_forward)


class _Anywhere(Implementation):
    def load(self) -> Any:
        return _loaded

    def refusal(self, args: tuple[Any, ...]) -> str | None:
        return None


_op = Op(
    seeded_gate,
    lambda x, weight, lengths: (x.new_empty(x.shape), x.new_empty(x.shape)),
    (_Anywhere("cuda", "", lambda *args: None, backward="kernel_seeds_backward"),),
)

SPEC = OpSpec(
    name="seeded_gate",
    summary="a product and its square",
    call=lambda x, weight, lengths: _op(x, weight, lengths),
    inputs=lambda dtype, generator, batch, time: {
        "x": torch.randn(batch, time, generator=generator, dtype=torch.float64).to(dtype),
        "weight": torch.full((1,), 0.7, dtype=dtype),
        "lengths": torch.arange(batch) + time - batch,
    },
    cases=(Case("only", "odd", {"batch": 3, "time": 13}), Case("ordinary", "ordinary", {"batch": 2, "time": 5})),
    cost=lambda itemsize, batch, time: Cost(3 * itemsize * batch * time, 2 * batch * time),
    padding=lambda x, lengths, **rest: {"x": torch.arange(x.shape[1]) >= lengths[:, None]},
    batched=("x", "lengths"),
)


def right(grads: list[Tensor | None], x: Tensor, weight: Tensor, lengths: Tensor, needs: list[bool]) -> list[Tensor]:
    valid = torch.arange(x.shape[1]) < lengths[:, None]
    kept = x.masked_fill(~valid, 0)
    first, second = (torch.zeros_like(x) if grad is None else grad for grad in grads)
    slope = (first + 2 * second * kept * weight).double()
    found = (slope * weight).masked_fill(~valid, 0), (slope * kept).sum().reshape(1)
    return [torch.mul(g, 1, out=x.new_empty(g.shape)) for g, need in zip(found, needs, strict=False) if need]


launch = right


def wrong_factor(grads, x, weight, lengths, needs):
    return [grad * 1.001 for grad in right(grads, x, weight, lengths, needs)]


def forgets_an_output(grads, x, weight, lengths, needs):
    return right([grads[0], None], x, weight, lengths, needs) if all(g is not None for g in grads) else [x, weight]


def needs_both_outputs(grads, x, weight, lengths, needs):
    return right([None if grads[1] is None else grads[0], grads[1]], x, weight, lengths, needs)


def strides_ignored(grads, x, weight, lengths, needs):
    dense = [None if g is None else g.as_strided(g.shape, (g.shape[1], 1)) for g in grads]
    return right(dense, x, weight, lengths, needs)


def mask_by_product(grads, x, weight, lengths, needs):
    valid = torch.arange(x.shape[1]) < lengths[:, None]
    found = right(grads, x * valid, weight, lengths.new_full(lengths.shape, 99), needs)
    return [g * valid if g.shape == x.shape else g for g in found]


def depends_on_what_is_asked(grads, x, weight, lengths, needs):
    return [g * (1 if all(needs[:2]) else 1 + 1e-6) for g in right(grads, x, weight, lengths, needs)]


def beyond_the_end(grads, x, weight, lengths, needs):
    found = right(grads, x, weight, lengths, needs)
    if (behind := _behind(found[0])) is not None:
        behind.fill_(1)
    return found


BUGS = {
    wrong_factor: ("gradients", "the gradient of x, by all outputs, errs"),
    forgets_an_output: ("gradients", "the gradient of x, by all outputs, errs"),
    needs_both_outputs: ("gradient_layouts", "by output 0, errs"),
    strides_ignored: ("gradient_layouts", "in another layout, errs"),
    mask_by_product: ("gradient_layouts", "the gradients depend on the padding"),
    depends_on_what_is_asked: ("gradient_layouts", "the gradient of x alone differs"),
    beyond_the_end: ("gradient_bounds", "something was written around the allocations"),
}

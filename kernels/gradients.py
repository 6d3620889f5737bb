"""What the fused backward of an implementation is held to, from the op's record alone."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor

from fastspeech.kernels import dispatch, guard
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import OPS
from fastspeech.kernels.tolerance import RULE, Verdict, judge

if TYPE_CHECKING:
    from fastspeech.kernels.verify import Subject

Inputs = Mapping[str, Any]
Grads = Sequence[Tensor | None]

FEW = 16
"""Numbers in a gradient that are too few for their errors to show what is usual, and DRAWS of it that do."""
DRAWS = 8


def fused(subject: Subject) -> Implementation | None:
    """The implementation whose fused backward the subject's call reaches."""
    op = OPS[subject.spec.name]
    named = [i for i in op.implementations if i.name == subject.backend and i.backward is not None]
    if not named:
        return None
    # Shapes and dtypes decide: a plan is made where its device need not be.
    args = _args(dataclasses.replace(subject, device="cpu"))
    return next((i for i in named if i.backward_limits(*args) is None), None)


def gradients(subject: Subject) -> None:
    """The gradients of all inputs by all outputs are right."""
    inputs = subject.inputs()
    _judged(subject, inputs, _upstream(subject), list(_leaves(inputs)), "by all outputs")


def gradient_layouts(subject: Subject) -> None:
    """They are right in any layout, by whatever outputs, the same for whatever inputs need them, and repeat."""
    inputs, upstream = subject.inputs(), _upstream(subject)
    names = list(_leaves(inputs))
    clean = _pulled(subject, inputs, upstream, names)
    for name, whole, again in zip(names, clean, _pulled(subject, inputs, upstream, names), strict=True):
        assert torch.equal(whole, again), f"the gradient of {name} differs from one call to the next"
        (alone,) = _pulled(subject, inputs, upstream, [name])
        assert torch.equal(alone, whole), f"the gradient of {name} alone differs from that among others"
    for index in range(len(upstream) if len(upstream) > 1 else 0):
        one = [grad if at == index else None for at, grad in enumerate(upstream)]
        _judged(subject, inputs, one, names, f"by output {index}")
    views = (guard.strided, guard.transposed)
    for first in range(2):
        laid = {
            n: views[(first + at) % 2](v) if isinstance(v, Tensor) else v for at, (n, v) in enumerate(inputs.items())
        }
        turned = [views[(first + 1 + at) % 2](grad) for at, grad in enumerate(upstream)]
        _judged(subject, laid, turned, names, "in another layout")
    ones = [grad.new_ones(()).expand_as(grad) for grad in upstream]
    _judged(subject, inputs, subject.specified(tuple(ones), inputs), names, "by a sum")
    masks = {name: mask for name, mask in subject.padding(inputs).items() if name in names}
    if masks:
        loud = {name: inputs[name].masked_fill(mask, float("nan")) for name, mask in masks.items()}
        beside = _pulled(subject, {**inputs, **loud}, upstream, names)
        assert all(map(torch.equal, clean, beside)), "the gradients depend on the padding"


def gradient_bounds(subject: Subject) -> None:
    """The backward reads nothing beyond what it is given, writes all of what it allocates and nothing beyond it."""
    inputs, upstream = subject.inputs(), _upstream(subject)
    names = list(_leaves(inputs))
    clean = _pulled(subject, inputs, upstream, names)
    implementation = fused(subject)
    assert implementation is not None and implementation.backward is not None
    module = importlib.import_module(implementation.backward)
    allocations = guard.Allocations()

    def launch(*args: Any, launch: Callable[..., Any] = module.launch) -> Any:
        with allocations:
            return launch(*args)

    banded = {n: guard.Banded.copy(v) for n, v in inputs.items() if isinstance(v, Tensor) and v.numel()}
    around = [guard.Banded.copy(grad) for grad in upstream]
    with mock.patch.object(module, "launch", launch):
        given = {**inputs, **{name: b.tensor for name, b in banded.items()}}
        found = _pulled(subject, given, [b.tensor for b in around], names)
    assert allocations.made, "the backward's launcher was not called, or allocated nothing"
    for what, bands in (("inputs", banded.values()), ("gradients", around), ("allocations", allocations.made)):
        assert all(b.intact() for b in bands), f"something was written around the {what}"
    assert all(map(torch.equal, clean, found)), "the gradients depend on what lies around, or are not all written"


def _args(subject: Subject) -> tuple[Any, ...]:
    with mock.patch.object(type(OPS[subject.spec.name]), "__call__", lambda op, *args: args):
        return subject.spec.call(**subject.inputs())


def _leaves(inputs: Inputs) -> dict[str, Tensor]:
    return {name: v for name, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()}


def _upstream(subject: Subject, draw: int = 0) -> list[Tensor]:
    """Gradients of the outputs, drawn; 0 where the outputs are not specified, of which nothing can follow."""
    generator = torch.Generator().manual_seed(subject.seed + 1 + draw)
    drawn = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in subject.clean]
    grads = tuple(grad.to(o) for grad, o in zip(drawn, subject.clean, strict=True))
    return [*subject.specified(grads, subject.inputs())]


def _pulled(
    subject: Subject, inputs: Inputs, upstream: Grads, names: Sequence[str], backend: str | None = None
) -> tuple[Tensor, ...]:
    """The gradients of the named inputs."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in names}
    with dispatch.use_backend(backend or subject.backend):
        outputs = subject.spec.run({**inputs, **leaves})
        given = [(o, grad) for o, grad in zip(outputs, upstream, strict=True) if grad is not None and o.requires_grad]
        return torch.autograd.grad(
            [o for o, _ in given], list(leaves.values()), [grad for _, grad in given], materialize_grads=True
        )


def _judged(subject: Subject, inputs: Inputs, upstream: Grads, names: Sequence[str], what: str) -> None:
    """Hold the gradients of the named inputs to the reference's in float64."""
    exact = {name: v.double() if name in names else v for name, v in inputs.items()}

    def by_reference(upstream: Grads, names: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """In the inputs' dtype and in float64."""
        # Left to itself cuDNN convolves float32 in TF32, whose error would then be allowed to the kernel.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            plains = _pulled(subject, inputs, upstream, names, "reference")
        wide = [None if grad is None else grad.double() for grad in upstream]
        return list(zip(plains, _pulled(subject, exact, wide, names, "reference"), strict=True))

    found = _pulled(subject, inputs, upstream, names)
    measures = dict(zip(names, by_reference(upstream, names), strict=True))
    # Few sums may be far smaller than their terms, or err by little as luck has it: several draws show what is usual.
    few = [name for name in names if inputs[name].numel() <= FEW]
    drawn = [_upstream(subject, draw) for draw in range(1, DRAWS if few else 1)]
    asked = [[g if up is not None else None for g, up in zip(grads, upstream, strict=True)] for grads in drawn]
    usual = [by_reference(grads, few) for grads in asked]
    scale = max((grad.abs().max().item() for grad in upstream if grad is not None and grad.numel()), default=0.0)
    for name, got in zip(names, found, strict=True):
        plain, oracle = measures[name]
        assert got.dtype == plain.dtype, f"the gradient of {name} is {got.dtype}, the reference's {plain.dtype}"
        verdict = judge(got, plain, oracle)
        if name in few:
            others = [judge(draw[few.index(name)][0], *draw[few.index(name)]).allowed for draw in usual]
            verdict = Verdict(verdict.error, max(verdict.allowed, *others))
        if oracle.numel() and oracle.abs().max() < 1e-9 * scale:
            # It is 0, as behind a softmax over one key, and what products of upstream and inputs leave is rounding.
            largest = max(v.abs().max().item() for v in inputs.values() if isinstance(v, Tensor) and v.numel())
            floor = RULE.floor_ulps * torch.finfo(torch.float32).eps * scale * max(largest, 1.0)
            verdict = Verdict(verdict.error, max(verdict.allowed, floor))
        subject.verdicts.append(verdict)
        assert verdict.ok, f"the gradient of {name}, {what}, errs by {verdict.error:.3g}, allowed {verdict.allowed:.3g}"

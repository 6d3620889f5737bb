"""An op: its PyTorch meaning, its fused implementations, and its registration with `torch.library`.

`Op` registers `fastspeech::<name>` (the schema is the reference's signature) for every device, with a fake for
tracing and an autograd formula: the fused backward of the implementation that serves the call, or the reference,
recomputed in the backward pass. The backward is an op of its own, `fastspeech::<name>_backward`, so that a compiled
training step holds it as one opaque call. Gradients that are differentiated themselves come of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels import dispatch, extension
from fastspeech.kernels.dispatch import Implementation

_library = torch.library.Library("fastspeech", "DEF")

OPS: dict[str, Op] = {}
"""Every op by name, in the order of definition."""


class Op:
    """A functional op: new contiguous outputs, inputs left as they are; or one that writes into its arguments only.

    Args:
        reference: the op's meaning, typed as `torch.library.infer_schema` demands; its parameters are the op's, a
            tensor first.
        fake: shape function, from the reference's arguments to empty outputs of the right shape and dtype.
        implementations: fused implementations, the fastest first.
        mutates: the parameters that the op writes into. Such an op returns None and has no gradients.
    """

    def __init__(
        self,
        reference: Callable[..., Any],
        fake: Callable[..., Any],
        implementations: tuple[Implementation, ...],
        mutates: tuple[str, ...] = (),
    ) -> None:
        self.name = reference.__name__
        self.reference = reference
        self.implementations = implementations
        self.keeps_outputs = any(i.backward_outputs for i in implementations)
        self.on_cpu = extension.BUILT and any(i.on_cpu for i in implementations)
        self.mutates = mutates
        schema = torch.library.infer_schema(reference, mutates_args=mutates)
        name = f"fastspeech::{self.name}"
        _library.define(self.name + schema)
        _library.impl(self.name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(name, fake, lib=_library)
        self.overload = getattr(torch.ops.fastspeech, self.name).default
        self.returns = len(self.overload._schema.returns)
        self._written = [at for at, a in enumerate(self.overload._schema.arguments) if a.name in mutates]
        if not mutates:
            torch.library.register_autograd(name, self._backward, setup_context=self._save, lib=_library)
            self._register_backward(schema)
        OPS[self.name] = self

    def __call__(self, *args: Any) -> Any:
        """Compute the op on positional `args`, all given.

        A CPU call that the reference serves is written out inline, so that autograd and the compiler see through it.

        Raises:
            RuntimeError: an op that writes into its arguments is to record a gradient.
        """
        if self.mutates and torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            raise RuntimeError(f"{self.name} writes into {', '.join(self.mutates)} and has no gradient: use no_grad")
        if dispatch.choose_inline(self, args):
            return self.reference(*args)
        return self.overload(*args)

    def _run(self, *args: Any) -> Any:
        serve = dispatch.choose(self, args)
        # Triton launches on the current device, which need not be the tensors'; on the CPU this does nothing.
        with torch.cuda.device_of(args[0]):
            result = serve(*args)
        if self.mutates:
            # Kernels write without PyTorch's knowledge.
            torch.autograd.graph.increment_version([args[at] for at in self._written])
            return None
        if serve is not self.reference:
            return result
        # An op's outputs are contiguous and alias nothing, whatever views its reference returns.
        return _owned(result, args) if isinstance(result, Tensor) else tuple(_owned(r, args) for r in result)

    def _register_backward(self, schema: str) -> None:
        inputs = schema[schema.index("(") + 1 : schema.rindex(") ->")]
        _library.define(f"{self.name}_backward(Tensor?[] grads, Tensor[] results, {inputs}, bool[] needs) -> Tensor[]")
        _library.impl(f"{self.name}_backward", self._run_backward, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fastspeech::{self.name}_backward", _fake_backward, lib=_library)
        self.backward_overload = getattr(torch.ops.fastspeech, f"{self.name}_backward").default

    def _save(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # The gradient of an output that nothing came of is None, which a kernel does not read.
        ctx.set_materialize_grads(False)
        outputs = _outputs(output) if self.keeps_outputs else ()
        ctx.save_for_backward(*(a for a in inputs if isinstance(a, Tensor)), *outputs)
        ctx.rest = [None if isinstance(a, Tensor) else (a,) for a in inputs]

    def _backward(self, ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        args = [next(saved) if kept is None else kept[0] for kept in ctx.rest]
        needs = list(ctx.needs_input_grad[: len(args)])
        if torch.is_grad_enabled():
            # The gradient will itself be differentiated (create_graph), which an opaque call cannot be.
            args = [a.view_as(a) if need else a for a, need in zip(args, needs, strict=True)]
            found = iter(self._pull_back(grads, args, needs, create_graph=True))
        else:
            found = iter(self.backward_overload(list(grads), list(saved), *args, needs))
        return tuple(next(found) if need else None for need in needs)

    def _run_backward(self, grads: list[Tensor | None], outputs: list[Tensor], *args_needs: Any) -> list[Tensor]:
        *args, needs = args_needs
        if (fused := dispatch.choose_backward(self, tuple(args))) is not None:
            with torch.cuda.device_of(args[0]):
                return fused.pull_back(grads, outputs, tuple(args), needs)
        pairs = zip(args, needs, strict=True)
        args = [a.detach().requires_grad_(need) if isinstance(a, Tensor) else a for a, need in pairs]
        with torch.enable_grad():
            return [g.contiguous() for g in self._pull_back(grads, args, needs, create_graph=False)]

    def _pull_back(
        self, grads: Sequence[Tensor | None], args: list[Any], needs: list[bool], create_graph: bool
    ) -> tuple[Tensor, ...]:
        """Gradients of the arguments that need one, through the reference."""
        outputs = _outputs(self.reference(*args))
        used = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        wanted = [a for a, need in zip(args, needs, strict=True) if need]
        return torch.autograd.grad(
            [o for o, _ in used],
            wanted,
            [g for _, g in used],
            create_graph=create_graph,
            materialize_grads=True,
        )


def _outputs(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _fake_backward(grads: list[Tensor | None], outputs: list[Tensor], *args_needs: Any) -> list[Tensor]:
    *args, needs = args_needs
    wanted = [a for a, need in zip(args, needs, strict=True) if need]
    return [torch.empty_like(a, memory_format=torch.contiguous_format) for a in wanted]


def _owned(result: Tensor, args: tuple[Any, ...]) -> Tensor:
    result = result.contiguous()
    aliases = any(isinstance(a, Tensor) and a.untyped_storage()._cdata == result.untyped_storage()._cdata for a in args)
    return result.clone() if aliases else result

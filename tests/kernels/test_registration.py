"""The ops as PyTorch sees them: schema, fakes, gradients, and the compiler, inline on the CPU and registered."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode

from fastspeech.kernels import OPS, dispatch, use_backend
from fastspeech.kernels.aot import fake_cuda, positional
from fastspeech.kernels.op import Op
from fastspeech.kernels.spec import all_specs

SPECS = {spec.name: spec for spec in all_specs()}
SMALL = [(spec, case) for spec in SPECS.values() for case in spec.cases if case.kind != "model"]
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
each_small_case = pytest.mark.parametrize(("spec", "case"), SMALL, ids=[f"{s.name}-{c.name}" for s, c in SMALL])
# An op that chooses indices, or writes into its arguments, has no gradients.
SMOOTH = {name: spec for name, spec in SPECS.items() if spec.judge is None and not OPS[name].mutates}
each_smooth_spec = pytest.mark.parametrize("spec", SMOOTH.values(), ids=SMOOTH)
SMOOTH_CASES = [(spec, case) for spec, case in SMALL if spec.name in SMOOTH]
each_smooth_case = pytest.mark.parametrize(
    ("spec", "case"), SMOOTH_CASES, ids=[f"{s.name}-{c.name}" for s, c in SMOOTH_CASES]
)


@pytest.fixture(params=["inline", "registered"])
def path(request, monkeypatch):
    """The two ways in which a CPU call reaches the reference."""
    if request.param == "inline":
        yield
    else:
        monkeypatch.setattr(dispatch, "choose_inline", lambda op, args: False)
        with use_backend("reference"):
            yield


def inputs_of(spec, shape, dtype=torch.float32, grad=False):
    inputs = spec.inputs(dtype, torch.Generator().manual_seed(0), **shape)
    for value in inputs.values():
        if grad and isinstance(value, Tensor) and value.is_floating_point():
            value.requires_grad_()
    return inputs


def called(spec, inputs):
    """The call as a function of its differentiable inputs alone, and these inputs."""
    names = [name for name, v in inputs.items() if isinstance(v, Tensor) and v.requires_grad]
    return lambda *given: spec.call(**{**inputs, **dict(zip(names, given, strict=True))}), [inputs[n] for n in names]


def outputs_of(result):
    return (result,) if isinstance(result, Tensor) else tuple(result)


def first(spec, kind):
    return next(case for case in spec.cases if case.kind == kind)


@each_spec
@pytest.mark.parametrize("kind", ["ordinary", "odd", "edge"])
def test_opcheck(spec, kind):
    op, args = positional(spec, inputs_of(spec, first(spec, kind).shape, grad=spec.name in SMOOTH))
    torch.library.opcheck(op.overload, args)


@each_smooth_spec
def test_opcheck_of_the_backward(spec):
    op, args = positional(spec, inputs_of(spec, first(spec, "odd").shape))
    outputs = list(outputs_of(op.overload(*args)))
    grads = [torch.ones_like(o) for o in outputs]
    needs = [isinstance(a, Tensor) and a.is_floating_point() for a in args]
    given = (grads, outputs, *args, needs)
    torch.library.opcheck(op.backward_overload, given, test_utils=("test_schema", "test_faketensor"))


@each_smooth_case
def test_gradients(spec, case, path):
    # Not at the record's own values: across silence or an empty filter no difference quotient is a derivative.
    generator = torch.Generator().manual_seed(1)
    inputs = inputs_of(spec, case.shape, torch.float64)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            drawn = 0.5 + torch.rand(value.shape, generator=generator, dtype=torch.float64)
            inputs[name] = drawn.requires_grad_()
    assert torch.autograd.gradcheck(*called(spec, inputs), fast_mode=True)


@each_smooth_spec
def test_gradients_of_some_inputs_only(spec, path):
    inputs = inputs_of(spec, first(spec, "odd").shape, torch.float64)
    everything = inputs_of(spec, first(spec, "odd").shape, torch.float64, grad=True)
    sum(o.square().sum() for o in spec.run(everything)).backward()
    for name, value in everything.items():
        if isinstance(value, Tensor) and value.requires_grad:
            one = inputs[name].clone().requires_grad_()
            outputs = spec.run({**inputs, name: one})
            sum(o.square().sum() for o in outputs).backward()
            torch.testing.assert_close(one.grad, value.grad)


@pytest.mark.parametrize("spec", [s for s in SPECS.values() if OPS[s.name].returns > 1], ids=lambda spec: spec.name)
def test_gradients_through_one_output(spec, monkeypatch):
    shape = first(spec, "odd").shape
    for index in range(OPS[spec.name].returns):
        inline, registered = (inputs_of(spec, shape, torch.float64, grad=True) for _ in range(2))
        spec.run(inline)[index].square().sum().backward()
        with monkeypatch.context() as patch, use_backend("reference"):
            patch.setattr(dispatch, "choose_inline", lambda op, args: False)
            spec.run(registered)[index].square().sum().backward()
        for name, value in inline.items():
            if isinstance(value, Tensor) and value.grad is not None:
                torch.testing.assert_close(registered[name].grad, value.grad)


def second_derivatives(spec):
    """Of the inputs, or the error by which PyTorch says that an operation of the reference has none."""
    inputs = inputs_of(spec, first(spec, "odd").shape, torch.float64, grad=True)
    given = [v for v in inputs.values() if isinstance(v, Tensor) and v.requires_grad]
    size = sum(o.square().sum() for o in spec.run(inputs))
    slopes = torch.autograd.grad(size, given, create_graph=True)
    try:
        return torch.autograd.grad(sum(s.square().sum() for s in slopes), given)
    except RuntimeError as error:
        return str(error)


@each_smooth_spec
def test_second_derivatives_are_those_of_the_reference(spec, monkeypatch):
    inline = second_derivatives(spec)
    monkeypatch.setattr(dispatch, "choose_inline", lambda op, args: False)
    with use_backend("reference"):
        registered = second_derivatives(spec)
    if isinstance(inline, str):
        assert "is not implemented" in inline
        assert registered == inline
    else:
        torch.testing.assert_close(registered, inline)


def seeded_fill(x: Tensor, by: Tensor) -> None:
    """A reference that writes into its argument."""
    x.add_(by)


def test_an_op_that_writes_says_so_and_refuses_gradients(monkeypatch):
    op = Op(seeded_fill, lambda *args: None, (), mutates=("x",))
    x, by = torch.zeros(2), torch.ones(2)
    op(x, by)
    torch.library.opcheck(op.overload, (x, by))
    version = x._version
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "choose", lambda op, args: lambda x, by: x.numpy().__iadd__(by.numpy()))
        op.overload(x, by)
    assert x.tolist() == [2, 2]
    assert x._version > version, "a gradient of what was there before would be wrong and not refused"
    weight = torch.ones(2, requires_grad=True)
    for args in ((weight, by), (x, weight)):
        with pytest.raises(RuntimeError, match="seeded_fill writes into x and has no gradient"):
            op(*args)
    with torch.no_grad():
        op(x, weight)
    assert x.tolist() == [3, 3]


def seeded_view(x: Tensor) -> Tensor:
    """A reference that gives back its input, turned."""
    return x.T


def test_an_op_owns_its_outputs_whatever_views_its_reference_gives():
    op = Op(seeded_view, lambda x: x.new_empty(x.shape[::-1]), ())
    for x in (torch.ones(2, 3), torch.ones(1, 3)):
        y = op.overload(x)
        assert y.is_contiguous()
        assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
        torch.library.opcheck(op.overload, (x,))


@each_spec
def test_fullgraph_forward_and_backward(spec, path):
    case = first(spec, "odd")
    torch._dynamo.reset()
    compiled = torch.compile(lambda inputs: spec.run(inputs), fullgraph=True, backend="aot_eager")
    plain, traced = (inputs_of(spec, case.shape, torch.float64, grad=spec.name in SMOOTH) for _ in range(2))
    expected, outputs = spec.run(plain), compiled(traced)
    torch.testing.assert_close(outputs, expected)
    for results in (expected, outputs) if spec.name in SMOOTH else ():
        sum(o.square().sum() for o in results).backward()
    for name, value in plain.items():
        if isinstance(value, Tensor) and value.requires_grad:
            torch.testing.assert_close(traced[name].grad, value.grad)


def mark_varying(spec, shape, inputs):
    """Mark as dynamic every axis of the inputs whose size follows from the batch or the length."""
    other = inputs_of(spec, spec.vary(shape, 1, 1))
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            for axis in range(value.dim()):
                if value.shape[axis] != other[name].shape[axis]:
                    torch._dynamo.mark_dynamic(value, axis)


@pytest.mark.parametrize(
    ("spec", "grad"),
    [*((spec, False) for spec in SPECS.values()), *((spec, True) for spec in SMOOTH.values())],
    ids=[*(f"{name}-forward" for name in SPECS), *(f"{name}-backward" for name in SMOOTH)],
)
def test_a_new_length_is_not_traced_again(spec, path, grad):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda inputs: spec.run(inputs), fullgraph=True, backend=counter)
    shape = first(spec, "ordinary").shape
    for by in range(1, 4):
        now = spec.vary(shape, by, 3 * by)
        inputs = inputs_of(spec, now, grad=grad)
        mark_varying(spec, now, inputs)
        outputs = compiled(inputs)
        torch.testing.assert_close(outputs, spec.run(inputs_of(spec, now)))
        if grad:
            sum(o.sum() for o in outputs).backward()
    assert counter.frame_count == 1


@each_small_case
def test_fake_cuda_outputs_agree_with_the_reference(spec, case):
    for dtype in spec.dtypes:
        inputs = inputs_of(spec, case.shape, dtype)
        real = spec.run(inputs)
        with FakeTensorMode():
            promised = spec.run({name: fake_cuda(value) for name, value in inputs.items()})
        assert [(o.shape, o.dtype) for o in promised] == [(o.shape, o.dtype) for o in real]
        assert all(o.device.type == "cuda" and o.is_contiguous() for o in promised)

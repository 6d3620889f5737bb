"""Which implementation serves a call: the environment, the context manager, refusals, the one warning."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace

import kernel_seeds
import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastspeech.kernels import BackendError, backend, conformer_conv, dispatch, embed_sum, use_backend
from fastspeech.kernels.dispatch import Implementation, device_refusal
from fastspeech.kernels.op import OPS


def smooth(**changes):
    inputs = kernel_seeds.SPEC.inputs(torch.float32, torch.Generator().manual_seed(0), batch=2, time=8)
    return kernel_seeds.SPEC.call(**{**inputs, **changes})


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done.stdout, done.stderr


def test_the_environment_names_the_backend():
    code = "import fastspeech.kernels as k; print(k.backend())"
    assert run(code, FASTSPEECH_BACKEND="reference")[0] == "reference\n"
    assert run(code)[0] == "auto\n"


def test_an_unknown_name_is_refused_with_the_known_ones():
    assert "unknown backend 'cudnn'" in run("import fastspeech.kernels", FASTSPEECH_BACKEND="cudnn")[1]
    with pytest.raises(ValueError, match="take auto, reference, triton, cuda"), use_backend("cudnn"):
        pass
    assert backend() == "auto"


def test_use_backend_is_undone_also_after_an_error():
    with pytest.raises(KeyError), use_backend("reference"):
        with use_backend("triton"):
            assert backend() == "triton"
        assert backend() == "reference"
        raise KeyError
    assert backend() == "auto"


def test_a_named_backend_serves_or_says_why_not(monkeypatch):
    monkeypatch.setattr(kernel_seeds, "launch", lambda x, *rest: torch.full_like(x, 7))
    with use_backend("cuda"):
        assert (smooth() == 7).all()
        with pytest.raises(BackendError, match="embed_sum has no cuda implementation"):
            embed_sum(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(2, 3), torch.zeros(1, dtype=torch.int64), 0)
    with use_backend("triton"):
        with pytest.raises(BackendError, match="seeded_smooth has no triton implementation"):
            smooth()
        with pytest.raises(BackendError, match="Triton kernels need CUDA tensors, these are on cpu"):
            conformer_conv(torch.zeros(1, 4, 4), torch.zeros(2, 3), torch.zeros(2))
    assert (smooth() != 7).all()


def test_what_the_op_cannot_serve_is_refused_by_its_reason(monkeypatch):
    monkeypatch.setattr(dispatch.extension, "refusal", lambda device_type: None)
    refusing = Implementation("cuda", "none", lambda *args: "too odd")
    monkeypatch.setattr(OPS["seeded_smooth"], "implementations", (refusing,))
    with use_backend("cuda"), pytest.raises(BackendError, match="FASTSPEECH_BACKEND=cuda: cuda: too odd"):
        smooth()


def test_argument_errors_come_before_dispatch():
    with use_backend("triton"), pytest.raises(ValueError, match="twice as many"):
        conformer_conv(torch.zeros(1, 4, 5), torch.zeros(2, 3), torch.zeros(2))


def test_falling_back_off_the_cpu_warns_once_an_op(monkeypatch):
    op = OPS["seeded_smooth"]
    monkeypatch.setattr(op, "implementations", (Implementation("triton", "none", lambda *a: None),))
    monkeypatch.setattr(dispatch, "_warned", set())
    x = torch.zeros(2, 8, device="meta")
    with pytest.warns(RuntimeWarning, match=r"seeded_smooth runs its PyTorch reference on meta.*are on meta"):
        assert dispatch.choose(op, (x,)) is op.reference
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dispatch.choose(op, (x,))


def test_auto_serves_the_cpu_by_what_is_marked_for_it_and_else_by_the_reference_silently(monkeypatch):
    op = OPS["seeded_smooth"]
    x = torch.zeros(2, 8)
    able, unable = (lambda *args: None), (lambda *args: "too odd")
    here, marked, refusing = (
        (replace(op.implementations[0], limits=limits, on_cpu=on_cpu),)
        for limits, on_cpu in ((able, False), (able, True), (unable, True))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for implementations, serves in ((here, op.reference), (marked, kernel_seeds.launch), (refusing, op.reference)):
            monkeypatch.setattr(op, "implementations", implementations)
            assert dispatch.choose(op, (x,)) is serves
    assert dispatch.choose_inline(op, (x,))
    monkeypatch.setattr(op, "on_cpu", True)
    assert not dispatch.choose_inline(op, (x,))
    with use_backend("reference"):
        assert dispatch.choose_inline(op, (x,))


def test_an_implementation_for_the_cpu_alone_says_so(monkeypatch):
    monkeypatch.setattr(dispatch.extension, "refusal", lambda device_type: None)
    for_cpu = Implementation("cuda", "none", lambda *args: None, on_cuda=False)
    assert for_cpu.refusal((torch.zeros(1),)) is None
    with FakeTensorMode():
        assert "CPU tensors only" in for_cpu.refusal((torch.empty(1, device="cuda"),))


def test_what_the_extension_needs(monkeypatch):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.setattr(dispatch.extension, "refusal", lambda device_type: None)
    monkeypatch.setattr(dispatch, "_capability", lambda index: (7, 5))
    assert "8.0" in device_refusal("cuda", gpu)
    assert device_refusal("cuda", cpu) is None
    monkeypatch.setattr(dispatch.extension, "refusal", lambda device_type: "not built")
    assert device_refusal("cuda", gpu) == device_refusal("cuda", cpu) == "not built"


def test_a_cpu_call_is_inline_and_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert smooth().grad_fn is None
        weight = torch.rand(3, requires_grad=True)
        assert "seeded" not in type(smooth(weight=weight).grad_fn).__name__


def test_what_triton_needs(monkeypatch):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.setattr(dispatch, "_capability", lambda index: (7, 5))
    assert "8.0" in device_refusal("triton", gpu)
    monkeypatch.setattr(dispatch, "_capability", lambda index: (9, 0))
    assert device_refusal("triton", gpu) is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert device_refusal("triton", cpu) is None
    assert "CPU tensors only" in device_refusal("triton", gpu)
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    assert device_refusal("triton", gpu) == "triton is not installed"

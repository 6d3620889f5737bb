"""log_mel by the extension: DFTs of other sizes than the models', threads, and what no clip should hold."""

import pytest
import torch

from fastspeech.kernels import extension, log_mel, use_backend
from fastspeech.kernels.dispatch import BackendError
from fastspeech.kernels.op import OPS
from fastspeech.kernels.spec import load_spec
from fastspeech.kernels.tolerance import judge

SPEC = load_spec("log_mel")
needs_library = pytest.mark.skipif(extension.refusal("cpu") is not None, reason="the extension is not built")


def inputs(**shape):
    shape = {"batch": 2, "samples": 3200, "n_fft": 512, "taps": 400, "hop": 160, "bins": 40, "per_frame": False} | shape
    return SPEC.inputs(torch.float32, torch.Generator().manual_seed(1), **shape)


def served(backend, given):
    with use_backend(backend):
        return log_mel(**given)


@needs_library
@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("n_fft", [2, 4, 8, 16, 32, 1024, 4096])
def test_powers_of_two(n_fft, per_frame):
    given = inputs(n_fft=n_fft, taps=n_fft - n_fft // 3, hop=n_fft // 2 + 1, samples=9 * n_fft, per_frame=per_frame)
    exact = {name: v.double() if isinstance(v, torch.Tensor) else v for name, v in given.items()}
    verdict = judge(served("cuda", given), served("reference", given), served("reference", exact))
    assert verdict.ok, verdict


@needs_library
def test_other_sizes_are_the_references():
    given = inputs(n_fft=400)
    with pytest.raises(BackendError, match="a DFT of 400 points, which are no power of two"):
        served("cuda", given)
    assert torch.equal(served("auto", given), OPS["log_mel"].reference(**given))


@needs_library
@pytest.mark.parametrize("per_frame", [False, True])
def test_threads_change_no_bit(per_frame):
    given = inputs(batch=3, samples=33333, per_frame=per_frame, lengths=(33333, 20000, 1234))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = served("cuda", given)
        torch.set_num_threads(3)
        assert torch.equal(served("cuda", given), alone)
    finally:
        torch.set_num_threads(threads)
    # Frames of padding alone lie in blocks that are not transformed, and in others.
    assert (alone[2, 20:] == alone[2, -1, 0]).all()


@needs_library
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_what_is_not_finite_stays_in_its_frames(value):
    given = inputs()
    clean = served("cuda", given)
    given["waveform"][0, 1600] = value
    found = served("cuda", given)
    # Frames 9, 10 and 11 hold sample 1600 or, for the emphasis, the one behind it.
    assert not found[0, 9:12].isfinite().any()
    found[0, 9:12] = clean[0, 9:12]
    assert torch.equal(found, clean)


@needs_library
def test_the_log_of_a_subnormal_number():
    given = inputs() | {"waveform": torch.zeros(1, 320), "log_offset": 0.0, "log_floor": 1e-41}
    torch.testing.assert_close(served("cuda", given), served("reference", given))


@pytest.mark.parametrize(("n_fft", "taps"), [(511, 400), (256, 400), (0, 0), (512, 0)])
def test_a_window_that_no_dft_fits_is_refused(n_fft, taps):
    given = inputs() | {"n_fft": n_fft, "window": torch.ones(taps)}
    with pytest.raises(ValueError, match=f"at least the window's taps, got {n_fft} for {taps}"):
        log_mel(**given)

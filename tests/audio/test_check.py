"""Each rule for samples that come as arrays is a clear error that names the thing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastspeech import AudioError
from fastspeech.audio.check import check_samples, check_sampling_rate

ramp = np.linspace(-0.5, 0.5, 400)


@pytest.mark.parametrize(
    ("samples", "fault"),
    [
        (np.zeros(0), "empty"),
        ([], "empty"),
        (np.zeros(319, np.float32), "319 samples are too short; the model needs at least 320"),
        (np.array([*ramp, np.nan]), "1 samples are NaN or infinite, the first at index 400"),
        (torch.tensor([-np.inf, *ramp, np.inf]), "2 samples are NaN or infinite, the first at index 0"),
        (np.array([1e300, *ramp]), "1 samples are NaN or infinite"),
        (np.zeros(400, np.int16), "int16 samples where floats .* e.g. 32768"),
        (torch.zeros(400, dtype=torch.int32), "int32 samples where floats .* e.g. 2147483648"),
        ([1, 2, 3], "int64 samples"),
        (np.zeros(400, bool), "bool samples"),
        (np.zeros(400, complex), "complex128 samples"),
        (np.zeros((2, 400)), r"shape \(2, 400\) where one mono clip"),
        (np.float32(0.5), r"shape \(\) where one mono clip"),
        ("clip.wav", "not an array of samples but str"),
        (None, "not an array of samples"),
        ([[0.1], [0.1, 0.2]], "not an array of samples but list"),
        (np.array([None, 1.0]), "not an array of samples but ndarray of object"),
    ],
)
def test_bad_samples_are_named(samples: Any, fault: str) -> None:
    with pytest.raises(AudioError, match=f"^call 7: .*{fault}"):
        check_samples(samples, name="call 7", minimum=320)


@pytest.mark.parametrize(
    "samples",
    [
        ramp,
        ramp.astype(np.float32),
        ramp.astype(np.float16),
        ramp.astype(">f4"),
        ramp[::-1],
        ramp[::2],
        list(ramp),
        tuple(ramp),
        torch.from_numpy(ramp),
        torch.from_numpy(ramp).bfloat16(),
    ],
)
def test_every_kind_of_float_sequence_is_taken(samples: Any) -> None:
    checked = check_samples(samples)
    assert checked.dtype == torch.float32 and checked.ndim == 1
    expected = samples.float() if isinstance(samples, torch.Tensor) else torch.tensor(np.array(samples, np.float32))
    assert torch.equal(checked, expected)


def test_float32_is_not_copied_and_read_only_arrays_are_taken() -> None:
    samples = np.zeros(8, np.float32)
    assert check_samples(samples).data_ptr() == samples.ctypes.data
    samples.flags.writeable = False
    assert torch.equal(check_samples(samples), torch.zeros(8))


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=20))
def test_what_passes_is_finite(values: list[float]) -> None:
    fit = bool(values) and bool(np.isfinite(values).all())
    if fit:
        assert torch.equal(check_samples(values), torch.tensor(values))
    else:
        with pytest.raises(AudioError):
            check_samples(np.array(values))


def test_a_finite_clip_whose_sum_overflows_is_taken() -> None:
    assert len(check_samples(np.full(10, 3e38, np.float32))) == 10


@pytest.mark.parametrize(("rate", "fault"), [(None, "not stated; pass sampling_rate=16000"), (8000, "8000 Hz where")])
def test_wrong_or_missing_rate(rate: int | None, fault: str) -> None:
    with pytest.raises(AudioError, match=fault):
        check_sampling_rate(rate, 16000)
    check_sampling_rate(16000, 16000)

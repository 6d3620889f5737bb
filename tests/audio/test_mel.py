"""The mel banks are those of librosa and Kaldi, as transformers computes them."""

import numpy as np
import pytest
import torch

from fastspeech.audio.mel import kaldi_mel_filters, slaney_mel_filters

audio_utils = pytest.importorskip("transformers.audio_utils")


@pytest.mark.parametrize(
    ("n_mels", "n_fft", "sampling_rate"), [(128, 512, 16000), (80, 512, 16000), (80, 400, 16000), (40, 1024, 44100)]
)
def test_slaney_bank_is_bit_exact(n_mels: int, n_fft: int, sampling_rate: int) -> None:
    expected = audio_utils.mel_filter_bank(
        n_fft // 2 + 1,
        n_mels,
        0.0,
        sampling_rate / 2,
        sampling_rate,
        norm="slaney",
        mel_scale="slaney",
        dtype=np.float32,
    ).T
    bank = slaney_mel_filters(n_mels, n_fft, sampling_rate)
    assert bank.dtype == torch.float32
    np.testing.assert_array_equal(bank.numpy(), expected)


@pytest.mark.parametrize(("n_mels", "n_fft", "sampling_rate"), [(80, 512, 16000), (23, 256, 8000)])
def test_kaldi_bank_is_bit_exact(n_mels: int, n_fft: int, sampling_rate: int) -> None:
    expected = audio_utils.mel_filter_bank(
        n_fft // 2 + 1,
        n_mels,
        20.0,
        sampling_rate / 2,
        sampling_rate,
        mel_scale="kaldi",
        triangularize_in_mel_space=True,
    ).T
    bank = kaldi_mel_filters(n_mels, n_fft, sampling_rate)
    np.testing.assert_array_equal(bank.numpy(), expected.astype(np.float32))
    assert bank[:, -1].count_nonzero() == 0

"""CohereAsr's processor against transformers: prompts, batches, labels, and text from tokens."""

from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from cohere_pair import LANGUAGES, ROLES, backend
from numpy.typing import NDArray

from fastspeech import AudioError, CohereAsrFeatureExtractor, CohereAsrProcessor, Tokenizer

SHORT: dict[str, Any] = {"feature_size": 16, "max_audio_clip_s": 1.0, "overlap_chunk_second": 0.3}


def noise(count: int, seed: int = 0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(count) * 0.1).astype(np.float32)


@pytest.fixture(scope="module")
def ours() -> CohereAsrProcessor:
    return CohereAsrProcessor(CohereAsrFeatureExtractor(**SHORT), Tokenizer(backend(), **ROLES))


@pytest.fixture(scope="module")
def theirs() -> transformers.CohereAsrProcessor:
    return transformers.CohereAsrProcessor(
        transformers.CohereAsrFeatureExtractor(**SHORT),
        transformers.PreTrainedTokenizerFast(tokenizer_object=backend(), **ROLES),
    )


@pytest.mark.parametrize("text", [None, "abc", ["ab", "abcde"]])
def test_mixed_batches(ours: Any, theirs: Any, text: Any) -> None:
    # the second is cut into chunks
    batch = noise(8000) if isinstance(text, str) else [noise(8000), noise(40000, 1)]
    asked = {"language": "fr", "text": text, "punctuation": False, "sampling_rate": 16000, "return_tensors": "pt"}
    expected, found = theirs(batch, **asked), ours(batch, **asked)
    assert set(found) == set(expected)
    assert found.audio_chunk_index == expected["audio_chunk_index"]
    for name in set(expected) - {"audio_chunk_index"}:
        assert found[name].dtype == expected[name].dtype
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", [["ab", "c"], [["ab", "c"], ["d"]]])
def test_texts_split_into_words(ours: Any, theirs: Any, text: Any) -> None:
    """As the page says; the processor of transformers 5.23 refuses them, its tokenizer takes them."""
    batch = [noise(8000) for _ in text] if isinstance(text[0], list) else noise(8000)
    found = ours(batch, language="fr", text=text, sampling_rate=16000, is_split_into_words=True)["labels"]
    options = {"padding": True, "padding_side": "right", "add_special_tokens": False, "return_tensors": "pt"}
    expected = theirs.tokenizer(text, is_split_into_words=True, **options)["input_ids"]
    assert torch.equal(found, expected.reshape(found.shape))
    with pytest.raises(ValueError, match="is_split_into_words"):
        ours(batch, language="fr", text=[["ab", "c"]], sampling_rate=16000)


@pytest.mark.parametrize("punctuation", [True, False])
@pytest.mark.parametrize("language", LANGUAGES)
def test_prompts(ours: Any, theirs: Any, language: str, punctuation: bool) -> None:
    found = ours.get_decoder_prompt_ids(language, punctuation)
    assert found == theirs.get_decoder_prompt_ids(language, punctuation)
    assert len(found) == 10
    rows = ours(noise(4000), language, punctuation=punctuation, sampling_rate=16000)["decoder_input_ids"]
    assert rows.tolist() == [found]


def test_options_of_either_side(ours: Any, theirs: Any) -> None:
    """In one dictionary for each, as in transformers."""
    batch = [noise(4000), noise(6000, 1)]
    asked: dict[str, Any] = {"language": "de", "text": ["ab", "c"], "sampling_rate": 16000}
    asked["text_kwargs"] = {"add_special_tokens": False, "padding_side": "left"}
    asked["audio_kwargs"] = {"padding": "max_length", "max_length": 8000}
    found, expected = ours(batch, **asked), theirs(batch, **asked)
    assert found["input_features"].shape == expected["input_features"].shape == (2, 51, 16)
    assert torch.equal(found["labels"], expected["labels"])


def test_arguments_by_position(ours: Any) -> None:
    by_name = ours(
        audio=noise(4000), language="en", text="ab", punctuation=False, sampling_rate=16000, return_tensors="np"
    )
    by_position = ours(noise(4000), "en", "ab", False, 16000, return_tensors="np")
    for name in ("input_features", "attention_mask", "decoder_input_ids", "labels"):
        assert isinstance(by_name[name], np.ndarray) and np.array_equal(by_name[name], by_position[name])


def test_channels_are_averaged(ours: Any) -> None:
    """As the page says of (C, T) arrays; transformers fails there."""
    left, right = noise(4000), noise(4000, 1)
    mono = ours((left + right) / 2, "en", sampling_rate=16000)["input_features"]
    for stereo in (np.stack([left, right]), torch.from_numpy(np.stack([left, right])), [np.stack([left, right])]):
        assert torch.equal(ours(stereo, "en", sampling_rate=16000)["input_features"], mono)


@pytest.mark.parametrize(
    "audio, fault",
    [
        (np.zeros((9, 400), np.float32), r"\(9, 400\) where \(channels, samples\) is meant; pass several clips as a"),
        (np.zeros((2, 400), np.int16), "int16 samples"),
        ([noise(400), np.zeros((400, 2), np.float32)], r"audio 1: shape \(400, 2\)"),
        ([noise(400), noise(10)], "audio 1: 10 samples are too short"),
        (np.zeros((1, 2, 400), np.float32), "one mono clip"),
    ],
)
def test_bad_audio(ours: Any, audio: Any, fault: str) -> None:
    with pytest.raises(AudioError, match=fault):
        ours(audio, "en", sampling_rate=16000)


def test_an_unknown_language_is_refused_before_the_audio_is_looked_at(ours: Any) -> None:
    with pytest.raises(ValueError, match=r"Unsupported language: 'xx'\. Supported languages: ar, de, el"):
        ours(np.zeros(0), "xx", sampling_rate=16000)
    with pytest.warns(UserWarning, match="language is not stated: 'en' is assumed"):
        rows = ours(noise(4000), sampling_rate=16000)["decoder_input_ids"]
    assert rows.tolist() == [ours.get_decoder_prompt_ids("en")]
    vocabulary = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "▁": 1}, unk_token="<unk>"))
    poor = CohereAsrProcessor(CohereAsrFeatureExtractor(), Tokenizer(vocabulary, unk_token="<unk>"))
    with pytest.raises(ValueError, match=r"no <\|startofcontext\|>.*<\|en\|>, <\|pnc\|>"):
        poor(noise(4000), "en", sampling_rate=16000)


def test_the_sampling_rate_should_be_stated_and_must_be_right(ours: Any) -> None:
    """As the page says; transformers 5.23 refuses what is not stated."""
    with pytest.warns(UserWarning, match="not stated: 16000 Hz is assumed"):
        ours(noise(4000), "en")
    with pytest.raises(AudioError, match="44100 Hz where the model needs 16000 Hz"):
        ours(noise(4000), "en", sampling_rate=44100)


def ids(ours: Any, *texts: str) -> torch.Tensor:
    """Rows as `generate` gives them: prompt, text, end, padding."""
    tokenizer = ours.tokenizer
    rows = [
        [*ours.get_decoder_prompt_ids("en"), *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        for text in texts
    ]
    longest = max(map(len, rows))
    return torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])


@pytest.mark.parametrize("language", ["en", "ja"])
def test_chunks_are_joined(ours: Any, theirs: Any, language: str) -> None:
    rows = ids(ours, "a b", "c", "", "d e", "f")
    index = [(0, None), (1, 0), (1, 1), (1, 2), (2, 0)]
    asked = {"skip_special_tokens": True, "audio_chunk_index": index, "language": language}
    found = ours.decode(rows, **asked)
    assert found == theirs.decode(rows, **asked)
    assert [text.strip() for text in found] == ["a b", "c d e" if language == "en" else "cd e", "f"]
    # in whatever order the rows come
    order = [3, 1, 4, 0, 2]
    shuffled = asked | {"audio_chunk_index": [index[i] for i in order]}
    assert ours.decode(rows[order], **shuffled) == found


def test_a_clip_whose_chunks_are_all_blank_gives_nothing(ours: Any, theirs: Any) -> None:
    rows = ids(ours, "", "", "a")
    asked = {"skip_special_tokens": True, "audio_chunk_index": [(0, 0), (0, 1), (1, None)], "language": "en"}
    assert [text.strip() for text in ours.decode(rows, **asked)] == ["", "a"]
    with pytest.raises(IndexError):
        theirs.decode(rows, **asked)


def test_decoding_without_an_index(ours: Any, theirs: Any) -> None:
    rows = ids(ours, "ab", "c")
    assert ours.decode(rows, skip_special_tokens=True) == theirs.decode(rows, skip_special_tokens=True)
    assert ours.decode(rows[0], skip_special_tokens=True) == theirs.decode(rows[0], skip_special_tokens=True)
    assert ours.batch_decode(rows, skip_special_tokens=True) == theirs.batch_decode(rows, skip_special_tokens=True)
    with pytest.raises(ValueError, match="`language` must be provided"):
        ours.decode(rows, audio_chunk_index=[(0, 0), (0, 1)])
    with pytest.raises(ValueError, match="3 rows, there are 2 texts"):
        ours.decode(rows, audio_chunk_index=[(0, 0), (0, 1), (0, 2)], language="en")
    assert ours.model_input_names == theirs.model_input_names

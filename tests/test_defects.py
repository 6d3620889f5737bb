"""Where transformers is wrong, or gives a choice away: what it does, what is done here, and both shown.

Shown are 5.23 at run time, and 4.56.2 as make_456.py wrote it down.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import test_saved_by_456
import tiny_moonshine
import tiny_speech_to_text
import torch
import transformers
from s2t_text import save_vocabulary
from torch.nn.functional import cross_entropy

from fastspeech import (
    AudioError,
    CohereAsrFeatureExtractor,
    CohereAsrProcessor,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    MoonshineModel,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Speech2TextModel,
    Speech2TextTokenizer,
    Tokenizer,
    pipeline,
)
from tests.models.cohere_asr import cohere_pair
from tests.models.moonshine import moonshine_pair
from tests.models.speech_to_text import s2t_pair

RATE = 16000


class Defect(NamedTuple):
    there: str
    here: str
    shown: Callable[[Path], None]


DEFECTS: list[Defect] = []


def defect(there: str, here: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Puts what shows both, given an empty folder, into the table."""

    def entered(shown: Callable[[Path], None]) -> Callable[[Path], None]:
        DEFECTS.append(Defect(there, here, shown))
        return shown

    return entered


def of_456(name: str) -> Any:
    return json.loads((test_saved_by_456.ROOT / name / "expected.json").read_text())


def moonshine() -> tuple[Any, Any]:
    """transformers' model and ours, of the same weights."""
    return moonshine_pair.pair("three heads")


def speech_to_text() -> tuple[Any, Any]:
    return s2t_pair.pair("deep decoder")


def cohere_asr() -> tuple[Any, Any]:
    return cohere_pair.pair("three heads")


def worst(a: Any, b: Any) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def noise(count: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(count)).astype(np.float32)


@defect(
    "Moonshine: a padded clip is not what it is alone (padding in the first norm, up to two frames too many)",
    "the same by default; exact_batching=True makes it what it is alone",
)
def moonshine_in_batches(_: Path) -> None:
    theirs, ours = moonshine()
    inputs, ids = moonshine_pair.audio((9000, 6000)), moonshine_pair.tokens(2, 5)
    alone = {"input_values": inputs["input_values"][1:, :6000], "decoder_input_ids": ids[1:]}
    there, solo = theirs(**inputs, decoder_input_ids=ids).logits[1:], theirs(**alone).logits
    assert worst(there, solo) > 1e-3
    assert worst(ours(**inputs, decoder_input_ids=ids).logits[1:], there) <= 1e-4
    assert worst(ours(**inputs, decoder_input_ids=ids, exact_batching=True).logits[1:], solo) <= 1e-4


@defect(
    "Speech2Text: a padded clip differs from itself alone near its end (the convolutions see frames of zeros)",
    "the same: no released model was trained otherwise",
)
def speech_to_text_in_batches(_: Path) -> None:
    theirs, ours = speech_to_text()
    inputs, ids = s2t_pair.audio(ours, (67, 41)), s2t_pair.tokens(2, 5)
    there = theirs(**inputs, decoder_input_ids=ids).logits[1:]
    solo = theirs(input_features=inputs["input_features"][1:, :41], decoder_input_ids=ids[1:]).logits
    assert worst(there, solo) > 1e-3
    assert worst(ours(**inputs, decoder_input_ids=ids).logits[1:], there) <= 1e-4


@defect(
    "Moonshine: 4.56 loses the rotary factor of a configuration that 5 saved",
    "read from rope_parameters, else from where 4 writes it; saved in both places",
)
def moonshines_rotary_factor(_: Path) -> None:
    assert of_456("moonshine")["rotary factor in a config of transformers 5"] == 0.9
    later = {"model_type": "moonshine", "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.62}}
    config = MoonshineConfig.from_dict(later)
    assert config.partial_rotary_factor == 0.62
    written = config.to_dict()
    assert written["partial_rotary_factor"] == written["rope_parameters"]["partial_rotary_factor"] == 0.62


def shared_and_copied(**heads: int) -> tuple[MoonshineForConditionalGeneration, MoonshineForConditionalGeneration]:
    """A model with one key/value head in the decoder, and one in which each query head has a copy of it."""
    sizes = moonshine_pair.settings("three heads") | heads
    torch.manual_seed(0)
    grouped = MoonshineForConditionalGeneration(MoonshineConfig(**sizes, decoder_num_key_value_heads=1)).eval()
    full = MoonshineForConditionalGeneration(MoonshineConfig(**sizes)).eval()
    state = grouped.state_dict()
    for key in state:
        if "decoder.layers" in key and (".k_proj." in key or ".v_proj." in key):
            copies = grouped.config.decoder_num_attention_heads
            state[key] = state[key].repeat(copies, *[1] * (state[key].dim() - 1))
    full.load_state_dict(state)
    return grouped, full


@defect("Moonshine: grouped key/value heads crash (4.56 and 5.23)", "they are served, with any number that divides")
def moonshines_grouped_heads(_: Path) -> None:
    assert of_456("moonshine")["faults"]["grouped heads"] == "RuntimeError"
    inputs = moonshine_pair.audio() | {"decoder_input_ids": moonshine_pair.tokens(3, 5)}
    shared = {"encoder_num_key_value_heads": 1, "decoder_num_key_value_heads": 1}
    sizes = moonshine_pair.settings("three heads") | shared
    theirs = transformers.MoonshineForConditionalGeneration(transformers.MoonshineConfig(**sizes))
    with pytest.raises(RuntimeError):
        theirs(**inputs)
    grouped, full = shared_and_copied()
    assert worst(grouped(**inputs).logits, full(**inputs).logits) <= 1e-5


@defect(
    "Moonshine: a decoder with other heads than the encoder crashes (4.56), or gets the encoder's (5.23)",
    "each side has its own",
)
def moonshines_unequal_heads(_: Path) -> None:
    assert of_456("moonshine")["faults"]["unequal heads"] == "RuntimeError"
    sizes = moonshine_pair.settings("three heads")
    inputs = moonshine_pair.audio() | {"decoder_input_ids": moonshine_pair.tokens(3, 5)}
    theirs, ours = moonshine()
    other = sizes | {"decoder_num_attention_heads": 2}
    there = transformers.MoonshineForConditionalGeneration(transformers.MoonshineConfig(**other)).eval()
    there.load_state_dict(theirs.state_dict())
    here = MoonshineForConditionalGeneration(MoonshineConfig(**other)).eval()
    here.load_state_dict(ours.state_dict())
    assert torch.equal(there(**inputs).logits, theirs(**inputs).logits)
    assert worst(here(**inputs).logits, ours(**inputs).logits) > 1e-2


@defect("Moonshine: 4.56 shifts labels a second time for the loss", "label u belongs to the logits of token u")
def moonshines_loss(_: Path) -> None:
    test_saved_by_456.test_moonshines_loss_shifts_once()


@defect(
    "CohereAsr: 5.6 shifts labels a second time for the loss; 5.23 does not", "label u belongs to the logits of token u"
)
def cohere_asrs_loss(_: Path) -> None:
    theirs, ours = cohere_asr()
    labels = cohere_pair.tokens(3, 6)
    found = ours(**cohere_pair.audio(ours), labels=labels)
    assert found.loss.item() == pytest.approx(theirs(**cohere_pair.audio(ours), labels=labels).loss.item(), abs=1e-4)
    twice = cross_entropy(found.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert abs(found.loss - twice) > 0.01


@defect(
    "Speech2Text: behind padding in the middle a token's position is another with a cache than without",
    "each as it is there: generate agrees with their generate, forward with their forward",
)
def speech_to_texts_positions_behind_padding(_: Path) -> None:
    theirs, ours = speech_to_text()
    inputs, ids = s2t_pair.audio(ours), s2t_pair.tokens(3, 6)
    ids[:, 2:4] = 1
    found = []
    for model in (theirs, ours):
        whole = model(**inputs, decoder_input_ids=ids).logits[:, -1]
        first = model(**inputs, decoder_input_ids=ids[:, :5], use_cache=True)
        given = {"encoder_outputs": (first.encoder_last_hidden_state,), "attention_mask": inputs["attention_mask"]}
        cached = model(**given, decoder_input_ids=ids[:, 5:], past_key_values=first.past_key_values, use_cache=True)
        found.append((whole, cached.logits[:, -1]))
    (whole, cached), (our_whole, our_cached) = found
    assert worst(whole, cached) > 1e-2
    assert worst(our_whole, whole) <= 1e-4 and worst(our_cached, cached) <= 1e-4


@defect("Speech2Text: features of silence are infinite", "a variance is at least 1e-10, as in fairseq")
def speech_to_texts_silence(_: Path) -> None:
    silence = np.zeros(RATE, np.float32)
    options: dict[str, Any] = {"sampling_rate": RATE, "return_tensors": "pt"}
    with np.errstate(all="ignore"):
        there = transformers.Speech2TextFeatureExtractor()(silence, **options)["input_features"]
    assert not there.isfinite().any()
    assert Speech2TextFeatureExtractor()(silence, **options)["input_features"].isfinite().all()


@defect("Speech2Text: 5 ignores do_lower_case, and capitals are unknown to it", "honoured, as 4 does")
def speech_to_texts_small_letters(folder: Path) -> None:
    files: dict[str, Any] = {**save_vocabulary(folder)}
    there = transformers.Speech2TextTokenizer(**files, do_lower_case=True)
    here = Speech2TextTokenizer(**files, do_lower_case=True)
    assert there("HELLO")["input_ids"] != there("hello")["input_ids"] == here("hello")["input_ids"]
    assert here("HELLO")["input_ids"] == here("hello")["input_ids"]


@defect("Speech2Text: tgt_lang without lang_codes is an AttributeError (4.56), None in 5", "None")
def speech_to_texts_missing_languages(folder: Path) -> None:
    assert of_456("speech_to_text")["faults"]["tgt_lang without lang_codes"] == "AttributeError"
    assert Speech2TextTokenizer(**save_vocabulary(folder)).tgt_lang is None


@defect(
    "Speech2Text and Moonshine: 4.56 cannot generate where the decoder is deeper than the encoder",
    "each decoder layer has its cache",
)
def deep_decoders(_: Path) -> None:
    for name in ("moonshine", "speech_to_text"):
        assert of_456(name)["faults"]["a decoder deeper than the encoder"] == "IndexError"
    theirs, ours = speech_to_text()
    found = ours.generate(**s2t_pair.audio(ours), max_new_tokens=6)
    assert torch.equal(found, theirs.generate(**s2t_pair.audio(ours), max_new_tokens=6))
    other, mine = moonshine()
    assert mine.config.decoder_num_hidden_layers > mine.config.encoder_num_hidden_layers
    found = mine.generate(**moonshine_pair.audio(), max_new_tokens=6)
    assert torch.equal(found, other.generate(**moonshine_pair.audio(), max_new_tokens=6))


@defect(
    "one limit of tokens for all clips of a batch: a short one loops up to the limit of a long one",
    "max_new_tokens for each row; in the pipeline max_tokens_per_second, which is 6.5 for Moonshine, 13 for some",
)
def limits_of_rows(_: Path) -> None:
    theirs, ours = moonshine()
    inputs, never = moonshine_pair.audio(), {"suppress_tokens": [moonshine_pair.EOS]}
    with pytest.raises(TypeError):
        theirs.generate(**inputs, max_new_tokens=[2, 5, 3], **never)
    rows = ours.generate(**inputs, max_new_tokens=[2, 5, 3], **never)
    assert [int((row[1:] != moonshine_pair.EOS).sum()) for row in rows] == [2, 5, 3]
    recognise = pipeline(model=tiny_moonshine.model(), processor=tiny_moonshine.processor())
    assert [len(result["text"].split()) for result in recognise([noise(RATE), noise(2 * RATE)])] == [7, 13]


@defect(
    "Speech2Text: the encoder takes its mask for token ids, so that with a pad_token_id other than 1 no frame, or"
    " only padding, has a position",
    "frames have positions by the mask, whatever the id; the same where it is 1",
)
def speech_to_texts_padding_id(_: Path) -> None:
    sizes = s2t_pair.settings("deep decoder") | {"pad_token_id": 0}
    theirs = transformers.Speech2TextForConditionalGeneration(transformers.Speech2TextConfig(**sizes)).eval()
    ours = Speech2TextForConditionalGeneration(Speech2TextConfig(**sizes)).eval()
    there = theirs.model.encoder.embed_positions(torch.zeros(1, 7, dtype=torch.long))
    like = torch.zeros(1, 7, 36)
    here = ours.model.encoder.embed_positions(None, 7, 0, like)
    assert not there.any()
    assert torch.pdist(here[0]).min() > 0.1
    shown = transformers.Speech2TextForConditionalGeneration(
        transformers.Speech2TextConfig(**sizes | {"pad_token_id": 1})
    )
    expected = shown.model.encoder.embed_positions(torch.zeros(1, 7, dtype=torch.long))
    found = Speech2TextModel(Speech2TextConfig(**sizes | {"pad_token_id": 1})).encoder.embed_positions(None, 7, 0, like)
    assert worst(found, expected) <= 1e-6


@defect("Speech2Text: no fused attention", "the op that all models share; attn_implementation 'sdpa' is served")
def speech_to_texts_attention(folder: Path) -> None:
    saved = tiny_speech_to_text.save(folder)
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        transformers.Speech2TextForConditionalGeneration.from_pretrained(saved, attn_implementation="sdpa")
    eager = transformers.Speech2TextForConditionalGeneration.from_pretrained(saved)
    ours = Speech2TextForConditionalGeneration.from_pretrained(saved, attn_implementation="sdpa")
    inputs = s2t_pair.audio(ours) | {"decoder_input_ids": s2t_pair.tokens(3, 5)}
    assert worst(ours(**inputs).logits, eager(**inputs).logits) <= 1e-4


@defect(
    "beam search holds cross-attention's keys and values once for each beam",
    "once for each clip; the sequences and their scores are the same",
)
def cross_attention_of_beams(_: Path) -> None:
    theirs, ours = speech_to_text()
    inputs = s2t_pair.audio(ours)
    options = {"num_beams": 4, "max_new_tokens": 5, "return_dict_in_generate": True, "output_scores": True}
    there, here = theirs.generate(**inputs, **options), ours.generate(**inputs, **options)
    assert torch.equal(here.sequences, there.sequences)
    assert worst(here.sequences_scores, there.sequences_scores) <= 1e-4
    assert len(there.past_key_values.cross_attention_cache.layers[0].keys) == 12
    assert len(here.past_key_values.cross_keys[0]) == 3


@defect("Moonshine: freeze_encoder is an AttributeError (4.56 and 5.23)", "it freezes the encoder")
def moonshines_frozen_encoder(_: Path) -> None:
    assert of_456("moonshine")["faults"]["freeze_encoder"] == "AttributeError"
    sizes = moonshine_pair.settings("three heads")
    with pytest.raises(AttributeError):
        transformers.MoonshineModel(transformers.MoonshineConfig(**sizes)).freeze_encoder()
    model = MoonshineModel(MoonshineConfig(**sizes))
    model.freeze_encoder()
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())


@defect("Moonshine: _mask_input_features is an AttributeError in 5", "SpecAugment, as 4 writes it")
def moonshines_masked_features(_: Path) -> None:
    sizes, masking = moonshine_pair.settings("three heads"), {"mask_time_prob": 0.5, "mask_time_length": 2}
    features = torch.ones(2, 4, 40)
    with pytest.raises(AttributeError, match="Not needed"):
        transformers.MoonshineModel(transformers.MoonshineConfig(**sizes))._mask_input_features()
    masked = MoonshineModel(MoonshineConfig(**sizes, **masking)).train()._mask_input_features(features)
    assert 0.2 < (masked == 0).float().mean() < 0.8


@defect(
    "Moonshine: too few samples give a length of 0 or less, then an error of the convolution",
    "an error that says how many are needed",
)
def moonshines_shortest_clip(_: Path) -> None:
    theirs, ours = moonshine()
    wave, ids = torch.zeros(1, 100), torch.tensor([[1]])
    assert theirs._get_feat_extract_output_lengths(torch.tensor(100)) <= 0
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):
        theirs(wave, decoder_input_ids=ids)
    with pytest.raises(ValueError, match="895"):
        ours(wave, decoder_input_ids=ids)
    with pytest.raises(AudioError, match="895"):
        tiny_moonshine.processor()(noise(100), sampling_rate=RATE)


@defect("Speech2Text: fewer samples than a frame give no features at all", "an error that says how many are needed")
def speech_to_texts_shortest_clip(_: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = transformers.Speech2TextFeatureExtractor()(noise(300), sampling_rate=RATE)["input_features"]
    assert len(there[0]) == 0
    with pytest.raises(AudioError, match="at least 400"):
        Speech2TextFeatureExtractor()(noise(300), sampling_rate=RATE)


@defect("Speech2Text: decoder_inputs_embeds fails, as positions are taken from ids", "embeddings have positions too")
def speech_to_texts_embeddings(_: Path) -> None:
    theirs, ours = speech_to_text()
    inputs, ids = s2t_pair.audio(ours), s2t_pair.tokens(3, 5)
    embedded = theirs.model.decoder.embed_tokens(ids) * theirs.model.decoder.embed_scale
    with pytest.raises((AttributeError, TypeError, ValueError)):
        theirs(**inputs, decoder_inputs_embeds=embedded)
    expected = theirs(**inputs, decoder_input_ids=ids).logits
    assert worst(ours(**inputs, decoder_inputs_embeds=embedded).logits, expected) <= 1e-4


@defect(
    "Speech2Text: with a cache, positions behind the table of max_target_positions are an IndexError",
    "the table grows",
)
def speech_to_texts_table_of_positions(_: Path) -> None:
    theirs, ours = s2t_pair.pair("untied")
    inputs = s2t_pair.audio(ours)
    with pytest.raises(IndexError):
        theirs.generate(**inputs, max_new_tokens=30, min_new_tokens=30)
    assert ours.generate(**inputs, max_new_tokens=30, min_new_tokens=30).shape == (3, 31)


@defect("CohereAsr: lists of floats, which the page names, are an AttributeError", "a clip like any other")
def cohere_asrs_lists_of_floats(_: Path) -> None:
    clip = noise(800).tolist()
    for given in (clip, [clip, clip]):
        with pytest.raises(AttributeError):
            transformers.CohereAsrFeatureExtractor()(given, sampling_rate=RATE)
        found = CohereAsrFeatureExtractor()(given, sampling_rate=RATE)["input_features"]
        expected = transformers.CohereAsrFeatureExtractor()(noise(800), sampling_rate=RATE)["input_features"]
        assert worst(found[:1], expected) <= 1e-3


def cohere_processors() -> tuple[Any, CohereAsrProcessor]:
    backend, roles = cohere_pair.backend(), cohere_pair.ROLES
    there = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    return (
        transformers.CohereAsrProcessor(transformers.CohereAsrFeatureExtractor(), there),
        CohereAsrProcessor(CohereAsrFeatureExtractor(), Tokenizer(cohere_pair.backend(), **roles)),
    )


@defect("CohereAsr: clips with channels, which the page names, fail in the processor", "channels are averaged")
def cohere_asrs_channels(_: Path) -> None:
    theirs, ours = cohere_processors()
    stereo, options = np.stack([noise(8000), noise(8000, 1)]), {"language": "en", "sampling_rate": RATE}
    with pytest.raises(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs(stereo, **options)
    assert torch.equal(ours(stereo, **options)["input_features"], ours(stereo.mean(0), **options)["input_features"])


@defect(
    "CohereAsr: a clip cut by truncation keeps its old length in mask and mean", "the length is that of what is left"
)
def cohere_asrs_truncation(_: Path) -> None:
    options: dict[str, Any] = {"sampling_rate": RATE, "truncation": True, "max_length": 4000}
    there = transformers.CohereAsrFeatureExtractor()([noise(8000)], **options)
    here = CohereAsrFeatureExtractor()([noise(8000)], **options)
    assert there["attention_mask"].all() and abs(there["input_features"].mean()) > 0.1
    assert here["attention_mask"].sum() == 25 and abs(here["input_features"].mean()) < 1e-5


@defect("CohereAsr: features on another device than the CPU fail", "features are computed where `device` says")
def cohere_asrs_device(_: Path) -> None:
    with pytest.raises(RuntimeError):
        transformers.CohereAsrFeatureExtractor()(noise(8000), sampling_rate=RATE, device="meta")
    found = CohereAsrFeatureExtractor()(noise(8000), sampling_rate=RATE, device="meta")["input_features"]
    assert found.device.type == "meta" and found.shape == (1, 51, 128)


@defect("CohereAsr: fewer than two frames give NaN", "an error that says how many samples are needed")
def cohere_asrs_shortest_clip(_: Path) -> None:
    there = transformers.CohereAsrFeatureExtractor()(noise(200), sampling_rate=RATE)["input_features"]
    assert there.isnan().any()
    with pytest.raises(AudioError, match="at least 320"):
        CohereAsrFeatureExtractor()(noise(200), sampling_rate=RATE)


@defect("CohereAsr: integers are taken for floats, 32768 times too loud", "an error that names the scale")
def cohere_asrs_integers(_: Path) -> None:
    loud = (noise(8000) * 32768).astype(np.int16)
    theirs = transformers.CohereAsrFeatureExtractor(dither=0.0)
    there = theirs(loud, sampling_rate=RATE)["input_features"]
    assert worst(there, theirs(loud.astype(np.float32), sampling_rate=RATE)["input_features"]) == 0
    with pytest.raises(AudioError, match="32768"):
        CohereAsrFeatureExtractor()(loud, sampling_rate=RATE)


@defect("CohereAsr: a clip whose chunks are all blank is an IndexError", "its text is empty")
def cohere_asrs_blank_chunks(_: Path) -> None:
    theirs, ours = cohere_processors()
    ids = torch.full((2, 3), ours.tokenizer.pad_token_id)
    options = {"skip_special_tokens": True, "audio_chunk_index": [(0, 0), (0, 1)], "language": "en"}
    with pytest.raises(IndexError):
        theirs.decode(ids, **options)
    assert ours.decode(ids, **options) == [""]


@defect("CohereAsr: an audio_chunk_index of another length leaves texts out", "an error")
def cohere_asrs_index(_: Path) -> None:
    theirs, ours = cohere_processors()
    ids = torch.tensor([[ours.tokenizer.convert_tokens_to_ids(letter)] for letter in "ab"])
    options = {"audio_chunk_index": [(0, None)], "language": "en"}
    assert len(theirs.decode(ids, **options)) == 1
    with pytest.raises(ValueError, match="1 rows, there are 2 texts"):
        ours.decode(ids, **options)


@defect(
    "CohereAsr: attention that gives its weights is NaN for a padded batch (5.6); 5.23 is finite",
    "finite, and 5.23's at the frames of each clip",
)
def cohere_asrs_attention_weights(_: Path) -> None:
    theirs, ours = cohere_pair.pair("three heads", "eager")
    inputs = cohere_pair.audio(ours) | {"decoder_input_ids": cohere_pair.tokens(3, 4), "output_attentions": True}
    there, here = theirs(**inputs), ours(**inputs)
    assert worst(here.logits, there.logits) <= 1e-4
    for mine, other in zip(here.encoder_attentions, there.encoder_attentions, strict=True):
        assert mine.isfinite().all()
        assert worst(mine[0, :, :16, :16], other[0, :, :16, :16]) <= 1e-4


@defect("CohereAsr: the encoder's output is projected again for every token", "once")
def cohere_asrs_projection(_: Path) -> None:
    theirs, ours = cohere_asr()
    calls = SimpleNamespace(theirs=0, ours=0)
    for name, model in (("theirs", theirs), ("ours", ours)):
        model.model.decoder.proj.register_forward_hook(
            lambda *_, name=name: setattr(calls, name, getattr(calls, name) + 1)
        )
        model.generate(**cohere_pair.audio(ours), max_new_tokens=6, min_new_tokens=6)
    assert (calls.theirs, calls.ours) == (6, 1)


@defect("CohereAsr: more tokens than positions are an IndexError in the middle", "cut beforehand, with a warning")
def cohere_asrs_positions(_: Path) -> None:
    theirs, ours = cohere_asr()
    with pytest.raises(IndexError):
        theirs.generate(**cohere_pair.audio(ours), max_new_tokens=60, min_new_tokens=60)
    with pytest.warns(UserWarning, match="positions for 40 tokens"):
        found = ours.generate(**cohere_pair.audio(ours), max_new_tokens=60, min_new_tokens=60)
    assert found.shape[1] == 40


@pytest.mark.parametrize("entry", DEFECTS, ids=lambda entry: entry.shown.__name__)
def test_there_and_here(entry: Defect, tmp_path: Path) -> None:
    with torch.no_grad():
        entry.shown(tmp_path)

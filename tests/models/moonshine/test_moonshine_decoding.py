"""Moonshine's `generate` against transformers: the same tokens, greedy and with beams."""

from typing import Any

import pytest
import torch
from moonshine_pair import ODD, audio, pair, tokens, worst

from fastspeech.generation.cache import DecoderCache


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4, "length_penalty": 0.0},
        {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True},
    ],
)
def test_generate(name: str, options: dict[str, Any]) -> None:
    theirs, ours = pair(name)
    # Tied random weights repeat themselves where they may.
    options = {"max_new_tokens": 16, "do_sample": False, "no_repeat_ngram_size": 2, **options}
    for lengths in ((9000, 6000, 2000), (4000,)):
        expected = theirs.generate(**audio(lengths), **options)
        found = ours.generate(**audio(lengths), **options)
        assert torch.equal(found, expected)
    assert found[0, 1:].unique().numel() > 2, "a sequence of one token shows little"


def test_scores_and_encoder_outputs() -> None:
    theirs, ours = pair("heads of 52")
    options = {"max_new_tokens": 12, "num_beams": 3, "return_dict_in_generate": True, "output_scores": True}
    expected = theirs.generate(**audio(), **options)
    with torch.no_grad():
        encoded = ours.model.encoder(**audio())
    found = ours.generate(encoder_outputs=encoded, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert worst(found.sequences_scores, expected.sequences_scores) <= 1e-4


def test_a_prompt() -> None:
    theirs, ours = pair("heads of 36")
    prompt = torch.cat([torch.ones(3, 1, dtype=torch.long), tokens(3, 4)], 1)
    options = {"max_new_tokens": 9, "do_sample": False, "decoder_input_ids": prompt}
    assert torch.equal(ours.generate(**audio(), **options), theirs.generate(**audio(), **options))


def test_audio_by_position_and_longer_than_max_position_embeddings() -> None:
    """No table of positions ends."""
    _, ours = pair("three heads")
    ours.config.max_position_embeddings, before = 8, ours.config.max_position_embeddings
    try:
        found = ours.generate(audio((3000,))["input_values"], max_new_tokens=30, min_new_tokens=30)
    finally:
        ours.config.max_position_embeddings = before
    assert found.shape == (1, 31)


def test_steps_are_the_forward_pass() -> None:
    _, ours = pair("heads of 52")
    ids = tokens(6, 7)
    cache = ours.start_decoding(audio(), 2, 4)
    assert isinstance(cache, DecoderCache)
    made = [ours.decode(ids[:, :2], cache)]
    made += [ours.decode(ids[:, step : step + 1], cache) for step in range(2, 7)]
    with torch.no_grad():
        inputs = {name: value.repeat_interleave(2, 0) for name, value in audio().items()}
        expected = ours(**inputs, decoder_input_ids=ids).logits
    assert worst(torch.stack(made, 1), expected[:, 1:]) <= 1e-4

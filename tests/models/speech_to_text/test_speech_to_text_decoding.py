"""Speech2Text under `generate`, against transformers."""

from itertools import product
from typing import Any

import pytest
import torch
from s2t_pair import ODD, audio, pair, tokens, worst

from fastspeech import GenerationConfig

PAD = 1


@pytest.fixture(scope="module", params=ODD)
def models(request: pytest.FixtureRequest) -> Any:
    theirs, ours = pair(request.param, max_target_positions=230)
    with torch.no_grad():
        # Less sure of every token, and surer of the end, so that beams differ and end at different lengths.
        for model in (theirs, ours):
            model.lm_head.weight *= 0.3
            model.lm_head.weight[2] *= 1.5
    return theirs, ours


def assert_same(theirs: Any, ours: Any, inputs: dict[str, Any], options: dict[str, Any]) -> torch.Tensor:
    options = {"max_length": 14, "return_dict_in_generate": True, "output_scores": True} | options
    expected, found = theirs.generate(**inputs, **options), ours.generate(**inputs, **options)
    assert torch.equal(found.sequences, expected.sequences), options
    if options.get("num_beams", 1) > 1:
        # A negative penalty multiplies the sum of log-probabilities, and what its rounding left, by the length.
        factor = max(1.0, (found.sequences.shape[1] - 1) ** -options.get("length_penalty", 1.0))
        assert worst(found.sequences_scores, expected.sequences_scores) <= 1e-4 * factor, options
    for mine, other in zip(found.scores, expected.scores, strict=True):
        kept = other.isfinite() & (other > -1e8)
        assert torch.equal(kept, mine.isfinite() & (mine > -1e8)), options
        assert worst(mine[kept], other[kept]) <= 1e-4, options
    return found.sequences


GRID = list(product((1, 2, 3, 5), (-1.0, 0.0, 1.0, 2.0), (True, False, "never"), ({}, {"forced_bos_token_id": 9})))


@pytest.mark.parametrize("part", range(4))
def test_generate(models: Any, part: int) -> None:
    theirs, ours = models
    inputs = audio(ours)
    lengths = set()
    for case, (beams, penalty, early, more) in enumerate(GRID):
        if case // 3 % 4 != part or (beams == 1 and (penalty != 1.0 or early is not True)):
            continue
        options = more | {"eos_token_id": ([2, 46], [2, 26, 5])[case % 2]}
        if beams > 1:
            options |= {"num_beams": beams, "length_penalty": penalty, "early_stopping": early}
        if case % 5 == 1:
            options["no_repeat_ngram_size"] = 2
        found = assert_same(theirs, ours, inputs, options)
        lengths |= set((found != PAD).sum(1).tolist())
        assert not more or (found[:, 1] == 9).all()
    assert len(lengths) > 2, "sequences that all end alike show little"


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4, "num_return_sequences": 3},
        {"num_beams": 5, "no_repeat_ngram_size": 3, "repetition_penalty": 1.3},
        {"num_beams": 2, "bad_words_ids": [[7], [8, 9]], "min_length": 6},
        {"max_length": 30, "eos_token_id": None},
        {"no_repeat_ngram_size": 1},
    ],
)
def test_generate_with_other_rules(models: Any, options: dict[str, Any]) -> None:
    theirs, ours = models
    assert_same(theirs, ours, audio(ours), options)


def test_a_prompt_with_padding_takes_cached_positions(models: Any) -> None:
    theirs, ours = models
    prompt = tokens(3, 4)
    prompt[:, 0] = 2
    prompt[1, 2] = PAD
    for beams in (1, 3):
        assert_same(theirs, ours, audio(ours) | {"decoder_input_ids": prompt}, {"num_beams": beams})


def test_generate_with_the_defaults_of_the_released_models(models: Any) -> None:
    theirs, ours = models
    inputs = audio(ours)
    released = {"num_beams": 5, "max_length": 200, "early_stopping": True}
    expected = theirs.generate(**inputs, **released)
    before = ours.generation_config
    ours.generation_config = GenerationConfig(**before.to_dict() | released)
    try:
        assert torch.equal(ours.generate(inputs["input_features"], attention_mask=inputs["attention_mask"]), expected)
        encoded = ours.model.encoder(**inputs)
        assert torch.equal(ours.generate(encoder_outputs=encoded), expected)
        given = (encoded.last_hidden_state,)
        assert torch.equal(ours.generate(encoder_outputs=given, attention_mask=inputs["attention_mask"]), expected)
    finally:
        ours.generation_config = before


def test_steps_agree_with_forward_for_beams_and_fewer_utterances(models: Any) -> None:
    """Several rows share an utterance, rows change places, utterances leave."""
    _, ours = models
    inputs = audio(ours)
    ids = tokens(6, 6)
    with torch.no_grad():
        cache = ours.start_decoding(inputs, 2, 3)
        ours.decode(ids[:, :3], cache)
        order = torch.tensor([1, 0, 2, 2, 5, 4])
        cache.reorder(order)
        ids = torch.cat([ids[order, :3], ids[:, 3:]], 1)
        ours.decode(ids[:, 3:4], cache)
        cache.keep([0, 2])
        ids, rows = ids[[0, 1, 4, 5]], [0, 0, 2, 2]
        found = [ours.decode(ids[:, i : i + 1], cache) for i in (4, 5)]
        whole = ours(**{name: value[rows] for name, value in inputs.items()}, decoder_input_ids=ids).logits
    assert worst(torch.stack(found, 1), whole[:, 4:]) <= 1e-5


def test_the_encoder_takes_its_head_mask(models: Any) -> None:
    _, ours = models
    inputs = audio(ours)
    mask = torch.zeros(ours.config.encoder_attention_heads)
    encoded = ours.model.encoder(**inputs, head_mask=mask)
    expected = ours.generate(encoder_outputs=encoded, max_length=12)
    assert torch.equal(ours.generate(**inputs, head_mask=mask, max_length=12), expected)

"""generate: its arguments, its lengths, and the cache under it."""

import warnings
from typing import Any

import pytest
import torch

from fastspeech.generation import GenerationConfig
from fastspeech.outputs import BaseModelOutput
from tests.generation.toy import DIM, EOS, PAD, START, Toy, UncachedToy


def features(batch: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 5, DIM, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "parameters", [{}, {"num_beams": 4}, {"do_sample": True, "num_return_sequences": 2, "top_k": 0}], ids=str
)
def test_the_cache_changes_nothing(parameters: dict[str, Any]) -> None:
    toy, uncached = Toy(), UncachedToy()
    left = 0
    for seed in range(12):
        for ends in (EOS, [EOS, 4, 5, 6, 7]):
            toy.rows = []
            common = {"max_new_tokens": 20, "eos_token_id": ends, **parameters}
            torch.manual_seed(seed)
            expected = uncached.generate(features(8, seed), **common)
            torch.manual_seed(seed)
            assert toy.generate(features(8, seed), **common).tolist() == expected.tolist()
            left += toy.rows[-1] < toy.rows[0]
    assert left >= 8


def test_audio_by_position_by_name_or_encoded() -> None:
    toy = Toy()
    expected = toy.generate(features(), max_new_tokens=5).tolist()
    assert toy.generate(input_features=features(), max_new_tokens=5).tolist() == expected
    for encoded in (BaseModelOutput(last_hidden_state=features()), (features(),)):
        assert toy.generate(encoder_outputs=encoded, max_new_tokens=5).tolist() == expected


def test_what_a_processor_adds_is_taken() -> None:
    toy = Toy()
    expected = toy.generate(features(), max_new_tokens=5).tolist()
    inputs = {"input_features": features(), "audio_chunk_index": [(0, None)], "labels": None}
    inputs["decoder_input_ids"] = torch.full((3, 1), START, dtype=torch.int32)
    inputs["decoder_attention_mask"] = torch.ones(3, 1)
    assert toy.generate(**inputs, max_new_tokens=5).tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_token": 5}, "neither a parameter of generate nor an input it takes here: max_new_token"),
        ({"labels": torch.zeros(3, 2)}, "labels"),
        ({"input_features": features()}, "given twice"),
        ({"inputs": None}, "no audio: give input_features or encoder_outputs"),
        ({"inputs": [[0.0]]}, "no audio"),
        ({"decoder_attention_mask": torch.tensor([[0, 1]] * 3)}, "of one length"),
        ({"decoder_input_ids": torch.zeros(2, 1).long()}, r"must be \(3, n\) token ids, got \(2, 1\)"),
        ({"decoder_input_ids": torch.zeros(3).long()}, r"must be \(3, n\)"),
        ({"decoder_input_ids": torch.zeros(3, 0).long()}, r"must be \(3, n\)"),
        ({"decoder_input_ids": torch.zeros(3, 2)}, r"float32"),
        ({"decoder_start_token_id": [1, 2]}, "2 tokens for 3 utterances"),
        ({"decoder_input_ids": torch.full((3, 5), START), "max_length": 5}, "prompt has 5 tokens, and max_length=5"),
        ({"stop_strings": "a"}, "does not implement stop_strings"),
        ({"synced_gpus": True}, "synced_gpus"),
        ({"negative_prompt_ids": torch.zeros(3, 1)}, "negative_prompt_ids"),
        ({"negative_prompt_attention_mask": torch.zeros(3, 1)}, "negative_prompt_ids"),
        ({"custom_generate": "somebody/some-code"}, "no code is loaded by name: 'somebody/some-code'"),
        ({"assistant_model": Toy()}, "one utterance"),
        ({"assistant_model": Toy(), "inputs": features(1), "num_beams": 2}, "one utterance"),
        ({"assistant_model": Toy(), "inputs": features(1), "num_assistant_tokens": 0}, "at least 1, got 0"),
        ({"assistant_model": Toy(), "inputs": features(1), "num_assistant_tokens_schedule": "x"}, "got 'x'"),
        ({"guidance_scale": 2.0}, "does not implement guidance_scale"),
        ({"streamer": object(), "num_beams": 2}, "a streamer needs num_beams=1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"bad_words_ids": [[EOS]]}, "bad_words_ids"),
        ({"sequence_bias": {(-1,): 2.0}}, "sequence_bias"),
        ({"prefix_allowed_tokens_fn": lambda utterance, ids: []}, "allows no token for utterance 0"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be above 0"),
        ({"do_sample": True, "top_k": -1}, "top_k must be at least 0"),
        ({"do_sample": True, "top_p": -0.1}, "top_p must be between 0 and 1"),
        ({"do_sample": True, "min_p": 1.5}, "min_p must be between 0 and 1"),
        ({"do_sample": True, "top_h": 0.0}, "top_h must be above 0"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    arguments = {"inputs": features(), "max_length": 9, **arguments}
    with pytest.raises(ValueError, match=message):
        Toy().generate(**arguments)


def test_no_prompt() -> None:
    toy = Toy()
    toy.generation_config.decoder_start_token_id = None
    with pytest.raises(ValueError, match="no prompt"):
        toy.generate(features(), max_new_tokens=2)
    prompt = torch.full((3, 2), 5)
    assert toy.generate(features(), decoder_input_ids=prompt, max_new_tokens=2)[:, :2].tolist() == prompt.tolist()
    toy.generation_config.bos_token_id = 7
    assert toy.generate(features(), max_new_tokens=2)[:, 0].tolist() == [7] * 3


def test_precedence() -> None:
    """Arguments before the configuration passed, before the model's, before the defaults."""
    toy = Toy()
    toy.generation_config.update(max_new_tokens=3, num_beams=2, return_dict_in_generate=True)
    passed = GenerationConfig(max_new_tokens=4, eos_token_id=[])
    given = passed.to_dict()
    output = toy.generate(features(), passed, max_new_tokens=6, output_scores=True)
    assert output.sequences.shape == (3, 7) and len(output.scores) == 6 and output.beam_indices is not None
    assert toy.generate(features(), passed).sequences.shape == (3, 5)
    assert toy.generate(features(), eos_token_id=None).sequences.shape == (3, 4)
    assert passed.to_dict() == given and toy.generation_config.max_new_tokens == 3


def test_lengths() -> None:
    toy = Toy()
    common: dict[str, Any] = {"eos_token_id": None, "decoder_input_ids": torch.full((3, 4), START)}
    with pytest.warns(UserWarning, match="neither max_new_tokens nor max_length is set"):
        assert toy.generate(features(), **common).shape == (3, 24)
    assert toy.capacity == 23
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert toy.generate(features(), **common, max_length=9).shape == (3, 9)
        assert toy.generate(features(), **common, max_length=9, max_new_tokens=2).shape == (3, 6)


def test_the_length_is_cut_to_the_positions_there_are() -> None:
    toy = Toy()
    toy.decoder_positions = 8
    with pytest.warns(UserWarning, match="positions for 8 tokens: a length of 21 is cut"):
        assert toy.generate(features(), eos_token_id=None, max_new_tokens=20).shape == (3, 8)
    with pytest.raises(ValueError, match="leaves room for no other"), pytest.warns(UserWarning, match="is cut"):
        toy.generate(features(), decoder_input_ids=torch.full((3, 8), START), max_new_tokens=2)


def test_time_limit() -> None:
    assert Toy().generate(features(), eos_token_id=None, max_new_tokens=50, max_time=0.0).shape == (3, 2)
    assert Toy().generate(features(), eos_token_id=None, max_new_tokens=5, max_time=60.0).shape == (3, 6)


@pytest.mark.parametrize("beams", [1, 3])
def test_what_comes_back_can_be_trained_on(beams: int) -> None:
    output = Toy().generate(
        features(), num_beams=beams, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    weight = torch.ones((), requires_grad=True)
    (output.scores[0] * weight).sum().backward()
    assert weight.grad == output.scores[0].sum()


@pytest.mark.parametrize("beams", [1, 3])
def test_half_precision(beams: int) -> None:
    """Scores are float32, of logits in the model's dtype."""
    output = Toy(torch.bfloat16).generate(
        features().bfloat16(),
        num_beams=beams,
        max_new_tokens=4,
        repetition_penalty=1.1,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert {step.dtype for step in output.scores + output.logits} == {torch.float32}
    assert torch.equal(output.logits[0].bfloat16().float(), output.logits[0])
    plain = Toy(torch.bfloat16).generate(features().bfloat16(), num_beams=beams, max_new_tokens=4)
    assert plain.shape[1] <= 5


@pytest.mark.parametrize("beams", [1, 3])
def test_a_model_may_give_its_logits_in_the_same_memory_each_time(beams: int) -> None:
    class Static(Toy):
        memory: torch.Tensor | None = None

        def decode(self, *args: Any) -> torch.Tensor:
            logits = super().decode(*args)
            self.memory = logits if self.memory is None else self.memory.copy_(logits)
            return self.memory

    record = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    outputs = [toy.generate(features(), num_beams=beams, max_new_tokens=4, **record) for toy in (Toy(), Static())]
    assert outputs[0].sequences.tolist() == outputs[1].sequences.tolist()
    for name in ("scores", "logits"):
        assert all(torch.equal(a, b) for a, b in zip(*(output[name] for output in outputs), strict=True))


def test_scores_are_kept_apart_from_logits() -> None:
    output = Toy().generate(
        features(),
        max_new_tokens=4,
        suppress_tokens=[5],
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    assert all(step[:, 5].isneginf().all() for step in output.scores)
    assert all(step[:, 5].isfinite().all() for step in output.logits)


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize(
    "parameters",
    [{}, {"num_beams": 3}, {"num_beams": 3, "early_stopping": "never"}, {"num_beams": 3, "length_penalty": -1}],
    ids=str,
)
def test_a_limit_for_each_utterance(parameters: dict[str, Any], record: bool) -> None:
    """Each gives what it gives alone under its limit, whether or not it leaves the batch; for no end token too."""
    toy, limits = Toy(), [9, 2, 5, 1, 14, 3]
    cut = 0
    for seed in range(3):
        for ends in (EOS, None):
            audio = features(len(limits), seed)
            common = {"eos_token_id": ends, "return_dict_in_generate": record, **parameters}
            output = toy.generate(audio, max_new_tokens=torch.tensor(limits) if seed % 2 else limits, **common)
            rows = (output.sequences if record else output).tolist()
            for row, clip, limit in zip(rows, audio, limits, strict=True):
                alone = toy.generate(clip[None], max_new_tokens=limit, **{**common, "return_dict_in_generate": False})
                alone = alone[0].tolist()
                assert row[: len(alone)] == alone and set(row[len(alone) :]) <= {PAD}
                cut += EOS not in alone
    assert cut >= 5


def test_limits_that_make_no_sense() -> None:
    for limits in ([3, 4], [3, 0, 4], []):
        with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
            Toy().generate(features(), max_new_tokens=limits)
    with pytest.raises(ValueError, match="forced_eos_token_id needs one max_new_tokens"):
        Toy().generate(features(), max_new_tokens=[1, 2, 3], forced_eos_token_id=EOS)


def test_the_models_own_parameters_are_left_out() -> None:
    toy = Toy()
    toy.generation_config.update(max_new_tokens=3, num_beams=2)
    with pytest.warns(UserWarning, match="neither max_new_tokens nor max_length is set"):
        assert toy.generate(features(), use_model_defaults=False, suppress_tokens=[EOS], synced_gpus=False).shape == (
            3,
            21,
        )
    assert toy.generate(features(), use_model_defaults=True, suppress_tokens=[EOS]).shape == (3, 4)


def test_a_loop_of_the_callers() -> None:
    """Greedy search as transformers' page writes it, on the rules, criteria and inputs that it is given."""
    toy = Toy()
    calls: dict[str, Any] = {}

    def loop(model: Toy, ids: torch.Tensor, logits_processor: Any, stopping_criteria: Any, **more: Any) -> torch.Tensor:
        calls.update(more)
        cache = model.start_decoding({"encoder_outputs": more["encoder_outputs"]}, 1, stopping_criteria.max_length)
        new_ids, ended = ids, torch.zeros(len(ids), dtype=torch.bool)
        while not ended.all():
            scores = logits_processor(ids, model.decode(new_ids, cache))
            new_ids = scores.argmax(-1, keepdim=True).masked_fill(ended[:, None], PAD)
            ids = torch.cat((ids, new_ids), 1)
            ended |= stopping_criteria(ids, None)
        return ids

    common = {"suppress_tokens": [7, 8], "max_new_tokens": 12, "repetition_penalty": 1.2}
    for seed in range(5):
        expected = toy.generate(features(4, seed), **common).tolist()
        assert toy.generate(features(4, seed), custom_generate=loop, **common).tolist() == expected
    assert calls.keys() == {"generation_config", "encoder_outputs"}
    assert calls["generation_config"].repetition_penalty == 1.2 and calls["generation_config"].top_k == 50


def test_going_on_with_a_cache() -> None:
    """The prompt repeats what the cache has read, as in transformers."""
    for seed in range(6):
        toy, audio = Toy(), features(1, seed)
        whole = toy.generate(audio, max_new_tokens=12, eos_token_id=None)
        first = toy.generate(audio, max_new_tokens=5, eos_token_id=None, return_dict_in_generate=True)
        asked = {"decoder_input_ids": first.sequences, "past_key_values": first.past_key_values, "max_length": 13}
        toy.rows = []
        assert toy.generate(**asked, eos_token_id=None).tolist() == whole.tolist()
        assert len(toy.rows) == 7 and first.past_key_values.length == 12
    with pytest.raises(ValueError, match="past_key_values has 12 tokens in 1 rows"):
        toy.generate(**asked)
    with pytest.raises(ValueError, match="in 1 rows"):
        toy.generate(**asked | {"max_length": 20, "decoder_input_ids": whole}, num_beams=2)

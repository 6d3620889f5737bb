"""CohereAsr's forward pass against transformers, at run time on random weights."""

import copy
from typing import Any

import pytest
import torch
import transformers
from cohere_pair import ODD, audio, pair, settings, tokens, worst

from fastspeech import CohereAsrConfig, CohereAsrForConditionalGeneration, CohereAsrModel, ParakeetEncoderConfig
from fastspeech.models.cohere_asr.encoder import ParakeetEncoder
from fastspeech.outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput


@pytest.fixture(scope="module", params=ODD)
def models(request: pytest.FixtureRequest) -> Any:
    return pair(request.param)


@pytest.mark.parametrize("gradients", [False, True])
def test_logits(models: Any, gradients: bool) -> None:
    theirs, ours = models
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 9)}
    with torch.set_grad_enabled(gradients):
        expected, found = theirs(**inputs).logits, ours(**inputs).logits
    assert expected.abs().max() > 1
    assert worst(found, expected) <= 1e-4
    assert found.requires_grad == gradients


def test_without_mask(models: Any) -> None:
    theirs, ours = models
    inputs = {"input_features": audio(ours, (50, 50))["input_features"], "decoder_input_ids": tokens(2, 5)}
    assert worst(ours(**inputs).logits, theirs(**inputs).logits) <= 1e-4
    assert ours.model.encoder(inputs["input_features"]).attention_mask is None


def test_state_dict_has_transformers_names_and_shapes(models: Any) -> None:
    theirs, ours = ({name: tensor.shape for name, tensor in model.state_dict().items()} for model in models)
    assert ours == theirs


def test_padding_changes_no_valid_row_and_rows_do_not_meet(models: Any) -> None:
    ours = copy.deepcopy(models[1]).double()  # batched and single products differ in float32's last bits
    inputs, ids = audio(ours), tokens(3, 9)
    features = inputs["input_features"].double()
    with torch.no_grad():
        together = ours(features, inputs["attention_mask"], ids)
        for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            alone = ours(features[row : row + 1, :length], None, ids[row : row + 1])
            assert worst(alone.logits[0], together.logits[row]) <= 1e-9
            frames = alone.encoder_last_hidden_state.shape[1]
            assert worst(alone.encoder_last_hidden_state[0], together.encoder_last_hidden_state[row, :frames]) <= 1e-9


def test_decoder_mask_positions_and_embeddings(models: Any) -> None:
    theirs, ours = models
    inputs, ids = audio(ours), tokens(3, 6)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, :2] = 0
    mask[2, 4:] = 0
    positions = torch.tensor([[3, 4, 5, 6, 7, 8]])
    given = inputs | {"decoder_attention_mask": mask, "decoder_position_ids": positions}
    embedded = {"decoder_inputs_embeds": ours.model.decoder.embed_tokens(ids)}
    expected = theirs(**given, decoder_input_ids=ids).logits
    for found in (ours(**given, decoder_input_ids=ids).logits, ours(**given, **embedded).logits):
        for row in range(3):
            assert worst(found[row, mask[row] > 0], expected[row, mask[row] > 0]) <= 1e-4
    assert worst(ours(**inputs, decoder_input_ids=ids).logits, expected) > 0.1


def test_cache_continues(models: Any) -> None:
    _, ours = models
    inputs, ids = audio(ours), tokens(3, 12)
    with torch.no_grad():
        whole = ours(**inputs, decoder_input_ids=ids, use_cache=False)
        assert whole.past_key_values is None
        first = ours(**inputs, decoder_input_ids=ids[:, :5])
        cache = first.past_key_values
        second = ours(decoder_input_ids=ids[:, 5:8], past_key_values=cache)
        third = ours(decoder_input_ids=ids[:, 8:9], past_key_values=cache, encoder_outputs=(first[2],))
        rest = [ours(decoder_input_ids=ids[:, i : i + 1], past_key_values=cache).logits for i in range(9, 12)]
    assert cache.get_seq_length() == 12
    assert second.encoder_last_hidden_state is None and third.encoder_last_hidden_state is first[2]
    found = torch.cat([first.logits, second.logits, third.logits, *rest], 1)
    assert worst(found, whole.logits) <= 1e-5


def test_cache_grows_beyond_its_first_capacity() -> None:
    config = CohereAsrConfig(**settings("grouped") | {"max_position_embeddings": 100})
    model = CohereAsrForConditionalGeneration(config).eval()
    inputs, ids = audio(model), tokens(3, 100)
    with torch.no_grad():
        whole = model(**inputs, decoder_input_ids=ids).logits
        cache = model(**inputs, decoder_input_ids=ids[:, :60]).past_key_values
        assert worst(model(decoder_input_ids=ids[:, 60:], past_key_values=cache).logits, whole[:, 60:]) <= 1e-5


def test_hidden_states_and_attentions() -> None:
    theirs, ours = pair("grouped", attention="eager")
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 7)}
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        expected, found = theirs(**inputs, **asked), ours(**inputs, **asked)
    valid = (inputs["attention_mask"].sum(1) + 7) // 8
    for field in ("decoder_hidden_states", "decoder_attentions", "cross_attentions"):
        assert len(found[field]) == len(expected[field])
        for mine, other in zip(found[field], expected[field], strict=True):
            assert worst(mine, other) <= 1e-4
    for field in ("encoder_hidden_states", "encoder_attentions"):
        assert len(found[field]) == len(expected[field])
        for mine, other in zip(found[field], expected[field], strict=True):
            for row, length in enumerate(valid.tolist()):
                at = (row, slice(length)) if "hidden" in field else (row, slice(None), slice(length))
                assert worst(mine[at], other[at]) <= 1e-4
    # asking does not change the answer
    assert worst(found.logits, ours(**inputs).logits) <= 1e-5


def test_outputs_by_name_and_position(models: Any) -> None:
    _, ours = models
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 4), "labels": tokens(3, 4)}
    with torch.no_grad():
        record, values = ours(**inputs), ours(**inputs, return_dict=False)
        bare = ours.model(**audio(ours), decoder_input_ids=tokens(3, 4))
        bare_values = ours.model(**audio(ours), decoder_input_ids=tokens(3, 4), return_dict=False)
        encoded = ours.model.encoder(**audio(ours), return_dict=False)
    assert isinstance(record, Seq2SeqLMOutput) and isinstance(bare, Seq2SeqModelOutput)
    assert list(record) == ["loss", "logits", "past_key_values", "encoder_last_hidden_state"]
    assert isinstance(values, tuple) and torch.equal(values[0], record.loss) and torch.equal(values[1], record.logits)
    assert isinstance(bare_values, tuple) and torch.equal(bare_values[0], bare.last_hidden_state)
    assert isinstance(encoded, tuple) and torch.equal(encoded[0], record.encoder_last_hidden_state)


def test_encoder_outputs_are_taken_in_every_form(models: Any) -> None:
    theirs, ours = models
    inputs, ids = audio(ours), tokens(3, 5)
    with torch.no_grad():
        whole = ours(**inputs, decoder_input_ids=ids).logits
        for given in (ours.model.encoder(**inputs), theirs.model.encoder(**inputs)):
            assert worst(ours(encoder_outputs=given, decoder_input_ids=ids).logits, whole) <= 1e-4
        full = audio(ours, (40, 40))["input_features"]
        states = ours.model.encoder(full).last_hidden_state
        expected = ours(full, None, ids[:2]).logits
        for given in ((states,), BaseModelOutput(states)):
            assert worst(ours(encoder_outputs=given, decoder_input_ids=ids[:2]).logits, expected) <= 1e-5


def test_mixed_lengths_share_one_table_of_positions() -> None:
    _, ours = pair("three heads")
    clips = [audio(ours, (frames,))["input_features"] for frames in (40, 300, 17)]
    with torch.no_grad():
        alone = [copy.deepcopy(ours.model.encoder)(clip)[0] for clip in clips]
        for clip, states in zip(clips, alone, strict=True):
            assert worst(ours.model.encoder(clip)[0], states) <= 1e-5


def test_long_audio() -> None:
    theirs, ours = pair("three heads")
    inputs = audio(ours, (3500, 3001))
    with torch.no_grad():
        expected, found = theirs.model.encoder(**inputs), ours.model.encoder(**inputs)
    assert torch.equal(found.attention_mask, expected.attention_mask)
    assert worst(found[0][0, :875], expected[0][0, :875]) <= 1e-4
    assert worst(found[0][1, :751], expected[0][1, :751]) <= 1e-4


def test_bfloat16() -> None:
    _, ours = pair("three heads")
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 5)}
    with torch.no_grad():
        exact = ours(**inputs).logits
        ours.to(torch.bfloat16)
        rounded = ours(**inputs | {"input_features": inputs["input_features"].bfloat16()}).logits
    assert rounded.dtype == torch.bfloat16
    assert worst(rounded.float(), exact) < 0.1 * exact.abs().max()


def test_clear_errors() -> None:
    _, ours = pair("three heads")
    inputs, ids = audio(ours), tokens(3, 5)
    with pytest.raises(ValueError, match="decoder_input_ids or decoder_inputs_embeds"):
        ours(**inputs)
    with pytest.raises(ValueError, match="decoder_input_ids or decoder_inputs_embeds"):
        ours(**inputs, decoder_input_ids=ids, decoder_inputs_embeds=torch.zeros(3, 5, 32))
    with pytest.raises(ValueError, match="input_features"):
        ours(decoder_input_ids=ids)
    with pytest.raises(ValueError, match=r"\(batch, frames, 20\), got \(3, 20\)"):
        ours(torch.zeros(3, 20), decoder_input_ids=ids)
    with pytest.raises(ValueError, match="40 positions; 41 tokens"):
        ours(**inputs, decoder_input_ids=tokens(3, 41))
    with pytest.raises(ValueError, match="4 tokens, there are 5"):
        ours(**inputs, decoder_input_ids=ids, decoder_attention_mask=torch.ones(3, 4))


def test_configurations_agree_with_transformers() -> None:
    for kwargs in ({}, {"encoder_config": {"num_hidden_layers": 3}, "hidden_size": 96}, settings("grouped")):
        ours, theirs = CohereAsrConfig(**kwargs).to_dict(), transformers.CohereAsrConfig(**kwargs).to_dict()
        own = {"dtype", "architectures", "return_dict", "output_attentions", "output_hidden_states"}
        for mine, other in ((ours, theirs), (ours["encoder_config"], theirs["encoder_config"])):
            fields = mine.keys() - own - {"encoder_config"}
            assert {field: mine[field] for field in fields} == {field: other[field] for field in fields}
    plain = ParakeetEncoderConfig()
    assert (plain.hidden_size, plain.num_mel_bins, plain.dropout) == (1024, 80, 0.1)
    default = CohereAsrConfig(encoder_config=ParakeetEncoderConfig(num_mel_bins=40))
    assert default.encoder_config.hidden_size == 1024 and default.encoder_config.num_mel_bins == 40


def test_configurations_refused() -> None:
    with pytest.raises(ValueError, match=r"num_attention_heads \(4\) must be a multiple of num_key_value_heads \(3\)"):
        CohereAsrConfig(num_attention_heads=4, num_key_value_heads=3)
    with pytest.raises(ValueError, match=r"num_mel_bins \(23\) must be a multiple of 8"):
        ParakeetEncoder(ParakeetEncoderConfig(num_mel_bins=23, num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"conv_kernel_size \(8\) must be odd"):
        ParakeetEncoder(ParakeetEncoderConfig(conv_kernel_size=8, num_hidden_layers=1))
    with pytest.raises(ValueError, match="unknown activation 'mish2'"):
        CohereAsrModel(CohereAsrConfig(**settings("three heads") | {"hidden_act": "mish2"}))

"""Speech2Text's forward pass against transformers, at run time on random weights."""

import copy
from typing import Any

import pytest
import torch
import transformers
from s2t_pair import ODD, audio, pair, settings, tokens, worst

from fastspeech import Speech2TextConfig, Speech2TextForConditionalGeneration, Speech2TextModel
from fastspeech.layers.packing import Padded
from fastspeech.models.speech_to_text.encoder import Speech2TextEncoder
from fastspeech.outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput

PAD = 1


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


def test_single_clip_and_no_mask(models: Any) -> None:
    theirs, ours = models
    for lengths in ((50,), (43, 43)):
        features, ids = audio(ours, lengths)["input_features"], tokens(len(lengths), 5)
        found = ours(features, decoder_input_ids=ids)
        assert worst(found.logits, theirs(features, decoder_input_ids=ids).logits) <= 1e-4
        assert ours.model.encoder(features).attention_mask is None


def test_mask_of_the_encoder_frames(models: Any) -> None:
    theirs, ours = models
    mask = torch.arange(70) < torch.tensor([70, 69, 33, 32, 31, 2, 1, 0])[:, None]
    frames = ours.model.encoder(torch.zeros(8, 70, 14), mask.int()).attention_mask
    assert torch.equal(frames, theirs.model._get_feature_vector_attention_mask(frames.shape[1], mask.int()).int())


def test_the_encoder_agrees_at_valid_frames(models: Any) -> None:
    theirs, ours = models
    inputs = audio(ours)
    with torch.no_grad():
        expected, found = theirs.model.encoder(**inputs), ours.model.encoder(**inputs)
        alone = ours.model.encoder(inputs["input_features"][2:, :30])
    valid = found.attention_mask.bool()
    assert worst(found[0][valid], expected[0][valid]) <= 1e-4
    assert not valid.all()
    # the convolutions see the padding: a clip alone is not what it is in a batch
    assert worst(alone[0][0], found[0][2, : alone[0].shape[1]]) > 1e-3


def test_padding_tokens_have_no_position(models: Any) -> None:
    theirs, ours = models
    ids = tokens(3, 9)
    ids[0, 3:5] = PAD
    ids[2, 0] = PAD
    inputs = audio(ours)
    found = ours(**inputs, decoder_input_ids=ids).logits
    assert worst(found, theirs(**inputs, decoder_input_ids=ids).logits) <= 1e-4


def test_decoder_mask(models: Any) -> None:
    theirs, ours = models
    inputs, ids = audio(ours), tokens(3, 6)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 2:4] = 0
    mask[2, 5:] = 0
    expected = theirs(**inputs, decoder_input_ids=ids, decoder_attention_mask=mask).logits
    found = ours(**inputs, decoder_input_ids=ids, decoder_attention_mask=mask).logits
    assert worst(found, expected) <= 1e-4
    assert worst(ours(**inputs, decoder_input_ids=ids).logits, expected) > 0.1


def test_embeddings_in_place_of_ids(models: Any) -> None:
    """transformers takes positions from ids alone, and fails here."""
    _, ours = models
    inputs, ids = audio(ours), tokens(3, 6)
    embedded = ours.model.decoder.embed_tokens(ids) * ours.model.decoder.scale
    found = ours(**inputs, decoder_inputs_embeds=embedded).logits
    assert worst(found, ours(**inputs, decoder_input_ids=ids).logits) <= 1e-5


def test_state_dict_has_transformers_names_and_shapes(models: Any) -> None:
    theirs, ours = ({name: tensor.shape for name, tensor in model.state_dict().items()} for model in models)
    assert ours == theirs


def test_more_positions_than_the_tables_begin_with() -> None:
    theirs, ours = pair("untied")
    inputs = audio(ours, (150, 90)) | {"decoder_input_ids": tokens(2, 40)}
    with torch.no_grad():
        assert worst(ours(**inputs).logits, theirs(**inputs).logits) <= 1e-4
    assert len(ours.model.decoder.embed_positions.weights) > 40 > ours.config.max_target_positions + 2


def test_cached_positions_go_on_beyond_the_table() -> None:
    """There transformers, which counts the new tokens only, raises IndexError."""
    _, ours = pair("untied")
    inputs, ids = audio(ours), tokens(3, 30)
    with torch.no_grad():
        whole = ours(**inputs, decoder_input_ids=ids).logits
        ours = pair("untied")[1]
        cache = ours(**inputs, decoder_input_ids=ids[:, :5]).past_key_values
        rest = [ours(decoder_input_ids=ids[:, i : i + 1], past_key_values=cache).logits for i in range(5, 30)]
    assert worst(torch.cat(rest, 1), whole[:, 5:]) <= 1e-5


def test_cache_continues(models: Any) -> None:
    theirs, ours = models
    inputs, ids = audio(ours), tokens(3, 12)
    ids[1, 6] = PAD  # the token behind it has another position than in one call
    with torch.no_grad():
        first, expected = ours(**inputs, decoder_input_ids=ids[:, :5]), theirs(**inputs, decoder_input_ids=ids[:, :5])
        cache, other = first.past_key_values, expected.past_key_values
        for i in range(5, 12):
            step = {"decoder_input_ids": ids[:, i : i + 1]}
            found = ours(**step, past_key_values=cache, cache_position=torch.tensor([i])).logits
            wanted = theirs(
                **step,
                past_key_values=other,
                encoder_outputs=(expected.encoder_last_hidden_state,),
                attention_mask=inputs["attention_mask"],
            ).logits
            assert worst(found, wanted) <= 1e-4
    assert cache.get_seq_length() == 12
    assert worst(found[:, -1], ours(**inputs, decoder_input_ids=ids).logits[:, -1]) > 1e-3


def test_hidden_states_and_attentions(models: Any) -> None:
    theirs, ours = models
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 7)}
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        expected, found = theirs(**inputs, **asked), ours(**inputs, **asked)
        valid = ours.model.encoder(**audio(ours)).attention_mask.bool()
    for field in ("decoder_hidden_states", "decoder_attentions", "cross_attentions"):
        assert len(found[field]) == len(expected[field])
        for mine, other in zip(found[field], expected[field], strict=True):
            assert worst(mine, other) <= 1e-4
    assert len(found.encoder_hidden_states) == len(expected.encoder_hidden_states)
    for mine, other in zip(found.encoder_hidden_states, expected.encoder_hidden_states, strict=True):
        assert worst(mine[valid], other[valid]) <= 1e-4
    for mine, other in zip(found.encoder_attentions, expected.encoder_attentions, strict=True):
        assert worst(mine.transpose(1, 2)[valid], other.transpose(1, 2)[valid]) <= 1e-4
    # asking does not change the answer
    assert worst(found.logits, ours(**inputs).logits) <= 1e-5


@pytest.mark.parametrize("attentions", [False, True])
@pytest.mark.parametrize(
    "argument, side, projection",
    [
        ("head_mask", "encoder", "self_attn"),
        ("decoder_head_mask", "decoder", "self_attn"),
        ("cross_attn_head_mask", "decoder", "encoder_attn"),
    ],
)
def test_head_masks(models: Any, argument: str, side: str, projection: str, attentions: bool) -> None:
    """transformers 5 has none; a factor of a head's weights is a factor of its columns of the output projection."""
    _, ours = models
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 5), "output_attentions": attentions}
    pruned = copy.deepcopy(ours)
    layers = getattr(pruned.model, side).layers
    heads = getattr(ours.config, f"{side}_attention_heads")
    mask = torch.rand(len(layers), heads, generator=torch.Generator().manual_seed(5)).round(decimals=1)
    mask[:, 0] = 0
    with torch.no_grad():
        for layer, factors in zip(layers, mask, strict=True):
            weight = getattr(layer, projection).out_proj.weight
            weight.unflatten(1, (heads, -1)).mul_(factors[:, None])
        expected, found = pruned(**inputs), ours(**inputs, **{argument: mask})
        assert worst(found.logits, expected.logits) <= 1e-5
        assert worst(found.logits, ours(**inputs).logits) > 1e-3
        one = ours(**inputs, **{argument: mask[0]}).logits
        assert torch.equal(one, ours(**inputs, **{argument: mask[:1].expand_as(mask)}).logits)
    if attentions:
        field = {"head_mask": "encoder_attentions", "decoder_head_mask": "decoder_attentions"}
        weights = found[field.get(argument, "cross_attentions")][0]
        torch.testing.assert_close(weights.sum(-1)[0, :, 0], mask[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=argument):
        ours(**inputs, **{argument: torch.ones(heads + 1)})


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
    mask = inputs["attention_mask"]
    with torch.no_grad():
        whole = ours(**inputs, decoder_input_ids=ids).logits
        states = ours.model.encoder(**inputs).last_hidden_state
        assert worst(ours(encoder_outputs=ours.model.encoder(**inputs), decoder_input_ids=ids).logits, whole) <= 1e-5
        for given in (theirs.model.encoder(**inputs), (states,), BaseModelOutput(states)):
            found = ours(encoder_outputs=given, attention_mask=mask, decoder_input_ids=ids).logits
            assert worst(found, whole) <= 1e-4
        # without the mask the padding is attended to
        assert worst(ours(encoder_outputs=(states,), decoder_input_ids=ids).logits, whole) > 1e-3


def test_bfloat16() -> None:
    theirs, ours = pair("deep decoder")
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 5)}
    with torch.no_grad():
        exact = ours(**inputs).logits
        low = inputs | {"input_features": inputs["input_features"].bfloat16()}
        mine = ours.to(torch.bfloat16)(**low, head_mask=torch.ones(3)).logits
        other = theirs.to(torch.bfloat16)(**low).logits
    assert mine.dtype == torch.bfloat16
    assert worst(mine.float(), exact) <= max(1.5 * worst(other.float(), exact), 0.05 * exact.abs().max().item())


def test_float16_states_are_clamped() -> None:
    _, ours = pair("deep decoder")
    ours.model.encoder.layers[0].fc2.bias.data.fill_(70000.0)
    half = ours.model.encoder.half()
    features = audio(ours)["input_features"].half()
    states = half(features, output_hidden_states=True)
    assert states[0].isfinite().all()
    layer, norm = half.layers[0], half.layer_norm
    x = half.layers[0].self_attn_layer_norm(states.hidden_states[0])
    after = layer(states.hidden_states[0], x, norm, Padded(None, x.shape[1]), None, False)[0]
    assert after.max() == 64512.0  # 65504 - 1000 as float16


def test_clear_errors() -> None:
    _, ours = pair("deep decoder")
    inputs, ids = audio(ours), tokens(3, 5)
    with pytest.raises(ValueError, match="decoder_input_ids or decoder_inputs_embeds"):
        ours(**inputs)
    with pytest.raises(ValueError, match="input_features"):
        ours(decoder_input_ids=ids)
    with pytest.raises(ValueError, match=r"\(batch, frames, 14\), got \(3, 14\)"):
        ours(torch.zeros(3, 14), decoder_input_ids=ids)
    with pytest.raises(ValueError, match="4 tokens, there are 5"):
        ours(**inputs, decoder_input_ids=ids, decoder_attention_mask=torch.ones(3, 4))


def test_configurations_agree_with_transformers() -> None:
    for kwargs in ({}, settings("deep decoder"), settings("untied")):
        ours, theirs = Speech2TextConfig(**kwargs).to_dict(), transformers.Speech2TextConfig(**kwargs).to_dict()
        fields = ours.keys() - {"dtype", "architectures", "return_dict", "output_attentions", "output_hidden_states"}
        assert {f: ours[f] for f in fields} == {f: theirs[f] for f in fields} | {
            "conv_kernel_sizes": list(theirs["conv_kernel_sizes"])
        }
    config = Speech2TextConfig(d_model=64)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (64, 4, 12)


def test_configurations_refused() -> None:
    with pytest.raises(ValueError, match="3 sizes for num_conv_layers=2"):
        Speech2TextConfig(conv_kernel_sizes=(5, 5, 5))
    with pytest.raises(ValueError, match=r"d_model \(30\) must be a multiple of decoder_attention_heads \(4\)"):
        Speech2TextConfig(d_model=30, encoder_attention_heads=3)
    with pytest.raises(ValueError, match="unknown activation 'mish2'"):
        Speech2TextModel(Speech2TextConfig(**settings("untied") | {"activation_function": "mish2"}))


def test_a_new_model_has_the_spread_of_its_configuration() -> None:
    config = Speech2TextConfig(**settings("untied") | {"init_std": 0.5, "vocab_size": 2000})
    model = Speech2TextForConditionalGeneration(config)
    for weight in (model.lm_head.weight, model.model.decoder.embed_tokens.weight[2:]):
        assert weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert not model.model.decoder.embed_tokens.weight[PAD].any()
    assert isinstance(model.get_encoder(), Speech2TextEncoder)
    assert model.get_output_embeddings() is model.lm_head
    model.set_output_embeddings(torch.nn.Linear(24, 2000, bias=False))
    assert model(**audio(model), decoder_input_ids=tokens(3, 2)).logits.shape == (3, 2, 2000)

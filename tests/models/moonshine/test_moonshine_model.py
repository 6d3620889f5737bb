"""Moonshine's forward pass against transformers, at run time on random weights."""

import copy
from typing import Any

import pytest
import torch
import transformers
from moonshine_pair import ODD, audio, pair, settings, tokens, worst

from fastspeech import MoonshineConfig, MoonshineForConditionalGeneration, MoonshineModel
from fastspeech.models.moonshine.encoder import frames_of
from fastspeech.outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput

each_model = pytest.mark.parametrize("name", ODD)


@each_model
@pytest.mark.parametrize("gradients", [False, True])
def test_logits(name: str, gradients: bool) -> None:
    theirs, ours = pair(name)
    inputs = audio() | {"decoder_input_ids": tokens(3, 9)}
    with torch.set_grad_enabled(gradients):
        expected, found = theirs(**inputs).logits, ours(**inputs).logits
    assert expected.abs().max() > 1
    assert worst(found, expected) <= 1e-4
    assert found.requires_grad == gradients


@each_model
def test_a_single_clip_without_mask(name: str) -> None:
    theirs, ours = pair(name)
    inputs = {"input_values": audio((5000,))["input_values"], "decoder_input_ids": tokens(1, 5)}
    with torch.no_grad():
        expected, found = theirs(**inputs), ours(**inputs)
    assert worst(found.logits, expected.logits) <= 1e-4
    assert worst(found.encoder_last_hidden_state, expected.encoder_last_hidden_state) <= 1e-4


@pytest.mark.parametrize("samples", [895, 1278, 1279, 6000])
def test_frames(samples: int) -> None:
    theirs, ours = pair("three heads")
    inputs = audio((samples + 500, samples))
    with torch.no_grad():
        expected = theirs.model.encoder(**inputs)
        found = ours.model.encoder(**inputs)
        alone = ours.model.encoder(inputs["input_values"][1:, :samples])
    assert torch.equal(found.attention_mask, expected.attention_mask)
    assert alone.last_hidden_state.shape[1] == frames_of(samples) == (samples - 895) // 384 + 1
    valid = found.attention_mask.bool()
    assert worst(found.last_hidden_state[valid], expected.last_hidden_state[valid]) <= 1e-4


def test_too_few_samples() -> None:
    _, ours = pair("three heads")
    with pytest.raises(ValueError, match=r"895 samples or more\), got \(1, 894\)"):
        ours(torch.zeros(1, 894), decoder_input_ids=tokens(1, 2))


@each_model
def test_state_dict_has_transformers_names_and_shapes(name: str) -> None:
    theirs, ours = ({name: tensor.shape for name, tensor in model.state_dict().items()} for model in pair(name))
    assert ours == theirs


@each_model
def test_exact_batching_makes_a_padded_row_what_it_is_alone(name: str) -> None:
    _, ours = pair(name)
    inputs, ids = audio((9000, 6000, 895)), tokens(3, 6)
    with torch.no_grad():
        together = ours(**inputs, decoder_input_ids=ids, exact_batching=True)
        default = ours(**inputs, decoder_input_ids=ids)
        for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
            alone = ours(inputs["input_values"][row : row + 1, :length], None, ids[row : row + 1])
            assert worst(alone.logits[0], together.logits[row]) <= 1e-5
            frames = frames_of(length)
            assert worst(alone.encoder_last_hidden_state[0], together.encoder_last_hidden_state[row, :frames]) <= 1e-5
            if row:
                assert worst(alone.logits[0], default.logits[row]) > 1e-3


def test_exact_batching_by_configuration_and_with_gradients() -> None:
    _, ours = pair("three heads")
    exact = MoonshineForConditionalGeneration(MoonshineConfig(**settings("three heads"), exact_batching=True)).eval()
    exact.load_state_dict(ours.state_dict())
    inputs = audio() | {"decoder_input_ids": tokens(3, 4)}
    with torch.no_grad():
        expected = ours(**inputs, exact_batching=True).logits
        assert torch.equal(exact(**inputs).logits, expected)
        options = {"max_new_tokens": 6, "num_beams": 2}
        made = [model.generate(**audio(), **options, **given) for model, given in ((exact, {}), (ours, _EXACT))]
    assert torch.equal(*made)
    assert worst(exact(**inputs).logits, expected) <= 1e-5


_EXACT = {"exact_batching": True}


@each_model
def test_the_normalisation_folds_exactly(name: str) -> None:
    encoder = copy.deepcopy(pair(name)[1].model.encoder).double()
    inputs = audio()
    waveform, samples = inputs["input_values"].double(), inputs["attention_mask"].sum(1)
    for lengths in (None, samples):
        plain = encoder.stem(waveform, lengths)
        assert plain.requires_grad
        with torch.no_grad():
            folded = encoder.stem(waveform, lengths)
        assert worst(folded, plain) <= 1e-12 * plain.abs().max()
    with torch.no_grad():  # and follows the weights
        encoder.groupnorm.weight.mul_(2)
        assert worst(encoder.stem(waveform, None), folded) > 0.1


def test_grouped_heads_are_those_of_an_expanded_model() -> None:
    """transformers cannot run these: each key/value head copied for its group must give the same."""
    torch.manual_seed(0)
    sizes = settings("three heads") | {"encoder_num_attention_heads": 6, "decoder_num_attention_heads": 4}
    grouped = MoonshineForConditionalGeneration(
        MoonshineConfig(**sizes, encoder_num_key_value_heads=2, decoder_num_key_value_heads=1)
    )
    full = MoonshineForConditionalGeneration(MoonshineConfig(**sizes))
    state = grouped.double().state_dict()
    for key, value in state.items():
        heads, kv_heads = (6, 2) if "encoder.layers" in key else (4, 1)
        if ".k_proj." in key or ".v_proj." in key:
            state[key] = value.unflatten(0, (kv_heads, -1)).repeat_interleave(heads // kv_heads, 0).flatten(0, 1)
    full.double().load_state_dict(state)
    inputs = audio() | {"decoder_input_ids": tokens(3, 7)}
    inputs["input_values"] = inputs["input_values"].double()
    with torch.no_grad():
        for options in ({}, {"output_attentions": True}):
            assert worst(grouped.eval()(**inputs, **options).logits, full.eval()(**inputs, **options).logits) <= 1e-12
    audio_only = {name: inputs[name] for name in ("input_values", "attention_mask")}
    for beams in (1, 3):
        made = [model.generate(**audio_only, num_beams=beams, max_new_tokens=8) for model in (grouped, full)]
        assert torch.equal(*made)


def test_decoder_heads_need_not_be_the_encoders() -> None:
    """transformers 5 builds such a decoder with the encoder's heads, so theirs is put together from two models."""
    (theirs_two, two), (theirs_four, four) = (
        _resized(pair("three heads")[0], {"encoder_num_attention_heads": n, "decoder_num_attention_heads": n})
        for n in (2, 4)
    )
    mixed = MoonshineForConditionalGeneration(
        MoonshineConfig(**two | {"decoder_num_attention_heads": four["decoder_num_attention_heads"]})
    )
    mixed.load_state_dict(theirs_two.state_dict())
    with torch.no_grad():
        expected = theirs_four(encoder_outputs=theirs_two.model.encoder(**audio()), decoder_input_ids=tokens(3, 5))
        found = mixed.eval()(**audio(), decoder_input_ids=tokens(3, 5))
        wrong = theirs_two(**audio(), decoder_input_ids=tokens(3, 5))
    assert worst(found.logits, expected.logits) <= 1e-4
    assert worst(found.logits, wrong.logits) > 1e-2


def _resized(model: Any, heads: dict[str, int]) -> tuple[Any, dict[str, Any]]:
    """transformers' model with those heads and the weights of `model`, and its settings."""
    sizes = settings("three heads") | heads
    made = transformers.MoonshineForConditionalGeneration(transformers.MoonshineConfig(**sizes)).eval()
    made.load_state_dict(model.state_dict())
    return made, sizes


def test_decoder_mask_positions_and_embeddings() -> None:
    theirs, ours = pair("three heads")
    ids = tokens(3, 6)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 2] = 0
    positions = torch.tensor([[3, 4, 5, 9, 10, 11], [0, 1, 2, 3, 4, 5], [7, 7, 8, 8, 30, 0]])
    inputs = audio() | {"decoder_attention_mask": mask, "decoder_position_ids": positions}
    with torch.no_grad():
        embeddings = theirs.get_input_embeddings()(ids)
        expected = theirs(**inputs, decoder_input_ids=ids).logits
        plain = ours(**audio(), decoder_input_ids=ids).logits
        assert worst(ours(**inputs, decoder_input_ids=ids).logits, expected) <= 1e-4
        assert worst(ours(**inputs, decoder_inputs_embeds=embeddings).logits, expected) <= 1e-4
        for name in ("decoder_attention_mask", "decoder_position_ids"):
            rest = {key: value for key, value in inputs.items() if key != name}
            assert worst(ours(**rest, decoder_input_ids=ids).logits, expected) > 1e-2
    assert worst(plain, expected) > 1e-2
    with pytest.raises(ValueError, match="either"):
        ours(**inputs)


@pytest.mark.parametrize("name", ["three heads", "heads of 36", "heads of 9"])
def test_hidden_states_and_attentions(name: str) -> None:
    theirs, ours = pair(name, "eager")
    inputs = audio() | {"decoder_input_ids": tokens(3, 5)}
    with torch.no_grad():
        expected = theirs(**inputs, output_hidden_states=True, output_attentions=True)
        found = ours(**inputs, output_hidden_states=True, output_attentions=True)
    assert isinstance(found, Seq2SeqLMOutput)
    for field in ("decoder_hidden_states", "decoder_attentions", "cross_attentions"):
        assert len(found[field]) == len(expected[field])
        assert max(map(worst, found[field], expected[field])) <= 1e-4, field
    valid = ours.model.encoder(**audio()).attention_mask.bool()
    for a, b in zip(found.encoder_hidden_states, expected.encoder_hidden_states, strict=True):
        assert worst(a[valid], b[valid]) <= 1e-4
    for a, b in zip(found.encoder_attentions, expected.encoder_attentions, strict=True):
        assert worst(a.transpose(1, 2)[valid], b.transpose(1, 2)[valid]) <= 1e-4


def test_tuples_and_the_bare_model() -> None:
    theirs, ours = pair("three heads")
    inputs = audio() | {"decoder_input_ids": tokens(3, 5)}
    bare = MoonshineModel(ours.config).eval()
    bare.load_state_dict(ours.model.state_dict())
    with torch.no_grad():
        expected = theirs.model(**inputs)
        found = bare(**inputs)
        as_tuple = bare(**inputs, return_dict=False)
        logits = ours(**inputs, return_dict=False)[0]
        encoded = ours.model.encoder(**audio(), return_dict=False)
    assert isinstance(found, Seq2SeqModelOutput)
    assert worst(found.last_hidden_state, expected.last_hidden_state) <= 1e-4
    assert torch.equal(as_tuple[0], found.last_hidden_state)
    assert worst(logits, theirs(**inputs).logits) <= 1e-4
    assert isinstance(encoded, tuple)


def test_cached_decoding_is_uncached_decoding() -> None:
    theirs, ours = pair("heads of 36")
    ids = tokens(3, 8)
    with torch.no_grad():
        expected = theirs(**audio(), decoder_input_ids=ids).logits
        first = ours(**audio(), decoder_input_ids=ids[:, :3])
        second = ours(decoder_input_ids=ids[:, 3:4], past_key_values=first.past_key_values)
        rest = ours(decoder_input_ids=ids[:, 4:], past_key_values=second.past_key_values)
        encoded = ours.model.encoder(**audio())
        reused = ours(encoder_outputs=encoded, decoder_input_ids=ids).logits
    assert worst(torch.cat([first.logits, second.logits, rest.logits], 1), expected) <= 1e-4
    assert worst(reused, expected) <= 1e-4
    assert rest.past_key_values.get_seq_length() == 8
    assert isinstance(encoded, BaseModelOutput)


@each_model
def test_loss_and_gradients(name: str) -> None:
    theirs, ours = (copy.deepcopy(model).train() for model in pair(name))
    labels = tokens(3, 7)
    labels[1, 4:] = -100
    losses = [model(**audio(), labels=labels).loss for model in (theirs, ours)]
    assert abs(losses[0].item() - losses[1].item()) <= 1e-5
    for loss in losses:
        loss.backward()
    expected = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        assert worst(parameter.grad, expected[key]) <= 1e-4 * max(1.0, float(expected[key].abs().max())), key


def test_the_loss_belongs_to_its_labels() -> None:
    """transformers 4 shifts the labels twice."""
    _, ours = pair("three heads")
    labels = tokens(2, 5)
    inputs = {"input_values": audio((3000, 3000))["input_values"]}
    shifted = torch.cat([torch.full((2, 1), 1), labels[:, :-1]], 1)
    output = ours(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    assert abs(output.loss.item() - expected.item()) <= 1e-6
    assert worst(ours(**inputs, decoder_input_ids=shifted).logits, output.logits) <= 1e-6


def test_attention_dropout_is_training_only() -> None:
    config = MoonshineConfig(**settings("three heads"), attention_dropout=0.5)
    model = MoonshineForConditionalGeneration(config)
    inputs = audio() | {"decoder_input_ids": tokens(3, 4)}
    with torch.no_grad():
        torch.manual_seed(0)
        assert worst(model.train()(**inputs).logits, model(**inputs).logits) > 1e-3
        assert torch.equal(model.eval()(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("name", ["heads of 36", "heads of 52"])
def test_bfloat16(name: str) -> None:
    """No further from float32 than transformers in bfloat16 is."""
    exact = pair(name)[0]
    theirs, ours = (copy.deepcopy(model).bfloat16() for model in pair(name))
    inputs, ids = audio(), tokens(3, 9)
    low = inputs | {"input_values": inputs["input_values"].bfloat16()}
    with torch.no_grad():
        oracle = exact(**inputs, decoder_input_ids=ids).logits
        error = (ours(**low, decoder_input_ids=ids).logits.float() - oracle).square().mean().sqrt()
        allowed = (theirs(**low, decoder_input_ids=ids).logits.float() - oracle).square().mean().sqrt()
    assert error <= 1.25 * allowed


def test_freezing_the_encoder() -> None:
    """transformers raises AttributeError here."""
    model = MoonshineForConditionalGeneration(MoonshineConfig(**settings("three heads")))
    model.freeze_encoder()
    assert not any(parameter.requires_grad for parameter in model.get_encoder().parameters())
    assert all(parameter.requires_grad for parameter in model.get_decoder().parameters())


def test_training_moves_what_inference_prepared() -> None:
    model = MoonshineForConditionalGeneration(MoonshineConfig(**settings("heads of 36")))
    inputs = audio() | {"labels": tokens(3, 5)}
    with torch.no_grad():
        before = model.eval()(**inputs).loss
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(**inputs).loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = model.eval()(**inputs).loss
    assert after < before - 0.01
    assert abs((after - model(**inputs).loss).item()) <= 1e-5


def test_spec_augment() -> None:
    config: Any = MoonshineConfig(
        **settings("three heads"), mask_time_prob=0.2, mask_time_length=3, mask_feature_prob=0.25, mask_feature_length=2
    )
    model = MoonshineModel(config)
    features = torch.ones(2, 16, 60)
    mask = torch.arange(60) < torch.tensor([[60], [24]])
    torch.manual_seed(0)
    masked = model.train()._mask_input_features(features, mask)
    times = (masked == 0).all(1)
    assert 3 <= times[0].sum() <= 12
    assert not times[1, 24:].any()
    assert times[1, :24].any()
    assert 1 <= (masked == 0).all(2)[0].sum() <= 4
    assert features.all()
    assert torch.equal(model.eval()._mask_input_features(features, mask), features)
    config.apply_spec_augment = False
    assert torch.equal(model.train()._mask_input_features(features, mask), features)
    assert torch.equal(
        MoonshineModel(MoonshineConfig(**settings("three heads")))._mask_input_features(features), features
    )


def test_embeddings_and_head_can_be_replaced() -> None:
    model = MoonshineForConditionalGeneration(MoonshineConfig(**settings("three heads")))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    table, head = torch.nn.Embedding(60, 36), torch.nn.Linear(36, 60, bias=False)
    model.set_input_embeddings(table)
    model.set_output_embeddings(head)
    ids = torch.full((1, 2), 55)
    assert model(**audio((2000,)), decoder_input_ids=ids).logits.shape == (1, 2, 60)

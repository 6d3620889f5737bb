"""Kyutai STT's decoder against transformers, in parallel and by steps, at run time on random weights."""

import copy
from typing import Any

import pytest
import torch
from kyutai_pair import CODES, ODD, TEXTS, ids, pair, worst

from fastspeech import KyutaiSpeechToTextForConditionalGeneration
from fastspeech.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

each_model = pytest.mark.parametrize("name", ODD)


def stepped(model: KyutaiSpeechToTextForConditionalGeneration, given: torch.Tensor) -> torch.Tensor:
    """Logits (rows, count, vocabulary) of the step interface."""
    state = model.start(len(given))
    columns = given.unbind(1)
    with torch.no_grad():
        return torch.stack([model.lm_head(model.step(now[:, 0], now[:, 1:], state)) for now in columns], 1)


@each_model
@pytest.mark.parametrize("gradients", [False, True])
def test_logits(name: str, gradients: bool) -> None:
    theirs, ours = pair(name)
    given = ids(3, 20)
    with torch.set_grad_enabled(gradients):
        expected, found = theirs(input_ids=given).logits, ours(given).logits
    assert expected.abs().max() > 1
    assert worst(found, expected) <= 1e-4
    assert found.requires_grad == gradients


@each_model
def test_steps_past_the_window(name: str) -> None:
    """A text three windows long, each token against transformers' with its cache, which forgets."""
    theirs, ours = pair(name)
    given = ids(3, 20)
    cache = None
    expected = []
    with torch.no_grad():
        for column in given.split(1, dim=1):
            output = theirs(input_ids=column, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            expected.append(output.logits)
        whole = theirs(input_ids=given).logits
    found = stepped(ours, given)
    assert worst(found, torch.cat(expected, 1)) <= 1e-4
    # In parallel nothing is forgotten, in either library.
    forgets = name != "wide"
    assert (worst(found[:, 6:], whole[:, 6:]) > 0.1) == forgets
    assert worst(found[:, :6], whole[:, :6]) <= 1e-4


@each_model
@pytest.mark.parametrize("parts", [[1] * 20, [3, 1, 9, 1, 1, 5], [15, 5], [4, 16]])
def test_forward_in_parts(name: str, parts: list[int]) -> None:
    theirs, ours = pair(name)
    first = second = None
    with torch.no_grad():
        for part in ids(2, 20).split(parts, dim=1):
            expected = theirs(input_ids=part, past_key_values=first, use_cache=True)
            found = ours(part, past_key_values=second)
            first, second = expected.past_key_values, found.past_key_values
            assert worst(found.logits, expected.logits) <= 1e-4
            assert second.get_seq_length() == first.get_seq_length()


def test_slots_are_apart_from_each_other() -> None:
    """Texts that join, leave and restart; what is in the memory of slots that are not named, or are new, is nothing."""
    _, ours = pair()
    given = ids(4, 24)
    alone = [stepped(ours, row[None])[0] for row in given]
    state = ours.start(3)
    for pages in state.decoder.pages:
        for side in pages:
            side.fill_(torch.nan)
    schedule = [([0], 4), ([2, 0], 7), ([1, 2], 5), ([2], 3), ([2, 1, 0], 9)]
    texts, read = {0: 0, 1: 1, 2: 2}, {0: 0, 1: 0, 2: 0}
    with torch.no_grad():
        for part, (slots, steps) in enumerate(schedule):
            if part == 3:
                # Slot 0 is closed, its memory spoilt, and another text begins there.
                for pages in state.decoder.pages:
                    for side in pages:
                        side[0] = torch.nan
                state.reset(torch.tensor([0]))
                texts[0], read[0] = 3, 0
            for _ in range(steps):
                now = torch.stack([given[texts[slot], read[slot]] for slot in slots])
                hidden = ours.step(now[:, 0], now[:, 1:], state, torch.tensor(slots))
                for slot, logits in zip(slots, ours.lm_head(hidden), strict=True):
                    assert worst(logits, alone[texts[slot]][read[slot]]) <= 1e-5
                    read[slot] += 1
    assert state.decoder.positions.tolist() == [9, 14, 24]


@each_model
def test_hidden_states_and_attention_weights(name: str) -> None:
    theirs, ours = pair(name)
    given = ids(2, 9)
    theirs.set_attn_implementation("eager")
    options: dict[str, Any] = {"output_hidden_states": True, "output_attentions": True}
    try:
        with torch.no_grad():
            expected, found = theirs(input_ids=given, **options), ours(given, **options)
    finally:
        theirs.set_attn_implementation("sdpa")
    for kind, count in (("hidden_states", 3), ("attentions", 2)):
        assert len(found[kind]) == len(expected[kind]) == count
        assert all(worst(a, b) <= 1e-4 for a, b in zip(found[kind], expected[kind], strict=True))
    assert worst(found.logits, expected.logits) <= 1e-4


@pytest.mark.parametrize("padding", ["left", "right"])
def test_a_mask(padding: str) -> None:
    theirs, ours = pair("wide")
    given, mask = ids(2, 9), torch.ones(2, 9, dtype=torch.int64)
    hidden = slice(0, 4) if padding == "left" else slice(5, 9)
    mask[1, hidden] = 0
    with torch.no_grad():
        expected = theirs(input_ids=given, attention_mask=mask).logits
        found = ours(given, attention_mask=mask).logits
        changed = given.clone()
        changed[1, hidden] = 1
        again = ours(changed, attention_mask=mask).logits
        cached = ours(given[:, :6], attention_mask=mask[:, :6])
        rest = ours(given[:, 6:], attention_mask=mask, past_key_values=cached.past_key_values).logits
    seen = mask.bool()
    assert worst(found[seen], expected[seen]) <= 1e-4
    assert torch.equal(found[seen], again[seen])
    assert worst(rest[mask[:, 6:].bool()], found[:, 6:][mask[:, 6:].bool()]) <= 1e-5
    with pytest.raises(ValueError, match=r"attention_mask must be \(2, 9\) for 0 tokens read and 9 new ones"):
        ours(given, attention_mask=mask[:, :8])


def test_positions_and_embeddings() -> None:
    theirs, ours = pair("wide")
    given = ids(2, 7)
    places = torch.tensor([[3, 4, 5, 9, 10, 11, 12], [0, 1, 2, 3, 4, 5, 6]])
    with torch.no_grad():
        # Without a mask transformers takes the gap for the border between two texts.
        mask = torch.ones(2, 7, dtype=torch.int64)
        expected = theirs(input_ids=given, position_ids=places, attention_mask=mask).logits
        for use_cache in (False, True):
            assert worst(ours(given, position_ids=places, use_cache=use_cache).logits, expected) <= 1e-4
        assert worst(ours(given).logits, expected) > 0.01
        embedded = ours.model.embed_tokens(given)
        assert worst(embedded, theirs.model.embed_tokens(given)) <= 1e-5
        assert worst(ours(inputs_embeds=embedded, position_ids=places).logits, expected) <= 1e-4


def test_codes_of_padding_add_nothing() -> None:
    _, ours = pair()
    given = ids(1, 1)
    silent = torch.full((1, 1, 8), TEXTS + 8 * CODES)
    with torch.no_grad():
        alone = ours.model.embed_tokens(torch.cat((given[..., :1], silent), 2))
        text = ours.model.embed_tokens.embed_tokens.weight[given[0, 0, 0]]
    assert worst(alone[0, 0], text) == 0


@pytest.mark.parametrize("options", [{}, {"num_items_in_batch": 7}])
def test_loss_and_gradients(options: dict[str, Any]) -> None:
    theirs, ours = (copy.deepcopy(model) for model in pair())
    given = ids(2, 10)
    labels = given[..., 0].clone() % TEXTS
    labels[1, 6:] = -100
    losses = []
    for model in (theirs, ours):
        output = model(input_ids=given, labels=labels, **options)
        output.loss.backward()
        losses.append(output.loss)
    assert worst(*losses) <= 1e-5
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert expected.keys() == found.keys() and len(found) == 2 * 9 + 3 - 2 * 1
    for name, gradient in expected.items():
        assert worst(found[name], gradient) <= 1e-5 * max(1, gradient.abs().max().item()), name
    assert found["model.embed_tokens.embed_tokens.weight"][-1].abs().max() == 0
    with pytest.raises(ValueError, match=r"labels \(2, 9\) and logits of \(2, 10\)"):
        ours(given, labels=labels[:, 1:])


@pytest.mark.parametrize("kept", [0, 1, 3, torch.tensor([0, 4])])
def test_logits_to_keep(kept: int | torch.Tensor) -> None:
    theirs, ours = pair()
    with torch.no_grad():
        expected = theirs(input_ids=ids(2, 5), logits_to_keep=kept).logits
        assert worst(ours(ids(2, 5), logits_to_keep=kept).logits, expected) <= 1e-4


def test_records_and_tuples() -> None:
    _, ours = pair()
    given = ids(1, 3)
    with torch.no_grad():
        record = ours(given)
        plain = ours(given, use_cache=False, return_dict=False)
        bare = ours.model(given, output_hidden_states=True, return_dict=False)
        assert isinstance(ours.model(given), BaseModelOutputWithPast)
    assert isinstance(record, CausalLMOutputWithPast) and list(record) == ["logits", "past_key_values"]
    assert len(plain) == 1
    # With a cache another op attends, which sums in another order.
    torch.testing.assert_close(plain[0], record.logits, rtol=1e-5, atol=2e-6)
    assert len(bare) == 3
    assert ours(given).past_key_values is None, "gradients are recorded"


def test_a_new_model_starts_from_the_spread_its_configuration_says() -> None:
    config = copy.deepcopy(pair()[1].config)
    config.initializer_range, config.extra_heads_num_heads = 0.3, 1
    model = KyutaiSpeechToTextForConditionalGeneration(config)
    maps = [p for name, p in model.named_parameters() if p.dim() == 2 and not name.startswith("codec_model.")]
    assert len(maps) == 2 * 6 + 3
    assert all(0.2 < weight.std() < 0.4 for weight in maps)
    assert model.model.embed_tokens.embed_tokens.weight[config.audio_pad_token_id].abs().max() == 0
    assert (model.model.norm.weight == 1).all()


def test_what_is_refused() -> None:
    _, ours = pair()
    given = ids(1, 3)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        ours()
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        ours(given, inputs_embeds=torch.zeros(1, 3, 32))
    for wrong in (given[..., 0], given[..., :8]):
        with pytest.raises(ValueError, match=r"input_ids must be \(batch, tokens, 9\)"):
            ours(wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_codec_stays_float32(dtype: torch.dtype) -> None:
    theirs, ours = pair()
    narrow = copy.deepcopy(ours).to(dtype)
    assert {p.dtype for p in narrow.codec_model.state_dict().values()} == {torch.float32}
    assert {p.dtype for p in narrow.model.parameters()} == {dtype} == {narrow.dtype}
    given = ids(2, 9)
    with torch.no_grad():
        expected = copy.deepcopy(theirs).to(dtype)(input_ids=given).logits.float()
        exact = theirs(input_ids=given).logits
        for found in (narrow(given).logits.float(), stepped(narrow, given[:, :6]).float()):
            length = found.shape[1]
            allowed = 2 * worst(expected[:, :length], exact[:, :length])
            assert worst(found, exact[:, :length]) <= allowed


def test_autocast() -> None:
    _, ours = pair()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = ours(ids(2, 9)).logits
    assert found.dtype == torch.bfloat16
    with torch.no_grad():
        assert worst(found.float(), ours(ids(2, 9)).logits) < 0.2

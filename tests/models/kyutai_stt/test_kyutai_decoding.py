"""`generate` of Kyutai STT: transformers' tokens under "hf", those of the original's rules under "moshi"."""

import copy
from typing import Any

import pytest
import torch
from kyutai_pair import CODES, FRAME, TEXTS, audio, pair, worst
from transformers import GenerationConfig as TheirGenerationConfig

from fastspeech import GenerationConfig
from fastspeech.outputs import GenerateDecoderOnlyOutput


def theirs_by(window: int | None, given: torch.Tensor, name: str = "small", **options: Any) -> Any:
    model = pair(name)[0]
    # An unset attribute is what None is there.
    model.generation_config.audio_window_size = window
    model.generation_config.do_sample = False
    try:
        return model.generate(input_values=given, padding_mask=torch.ones_like(given[:, 0]), **options)
    finally:
        model.generation_config.audio_window_size = 1


@pytest.mark.parametrize("window", [1, 3, None])
@pytest.mark.parametrize("name", ["small", "grouped"])
@pytest.mark.parametrize(("rows", "samples"), [(3, 31 * FRAME + 17), (1, 20 * FRAME), (2, 4 * FRAME + 63), (2, FRAME)])
def test_tokens_are_transformers(name: str, window: int | None, rows: int, samples: int) -> None:
    """Past both windows, of 6 tokens and of 2 frames, and in recordings shorter than one."""
    given = audio(rows, samples)
    expected = theirs_by(window, given, name)
    found = pair(name)[1].generate(given, audio_window_size=window)
    assert found.shape == (rows, 1 + samples // FRAME)
    assert torch.equal(found, expected)
    if samples > 8 * FRAME:
        assert found.unique().numel() > 10


def test_the_orders_of_frames_differ() -> None:
    given = audio(2, 20 * FRAME)
    model = pair()[1]
    texts = [model.generate(given, audio_window_size=window) for window in (1, 3, None)]
    texts.append(model.generate(given, alignment="moshi"))
    assert all(not torch.equal(a[:, 1:], b[:, 1:]) for i, a in enumerate(texts) for b in texts[:i])
    assert torch.equal(model.generate(given), texts[0]), "the checkpoint's window"


def test_pieces_of_the_codec_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    given = audio(3, 25 * FRAME)
    model = pair()[1]
    expected = [model.generate(given, alignment=alignment) for alignment in ("hf", "moshi")]
    for piece in (1, 7, 1000):
        monkeypatch.setattr("fastspeech.models.kyutai_stt.generation._PIECE", piece)
        for alignment, tokens in zip(("hf", "moshi"), expected, strict=True):
            assert torch.equal(model.generate(given, alignment=alignment), tokens)


def by_the_rules_of_moshi(given: torch.Tensor) -> torch.Tensor:
    """LMGen's loop in transformers' modules: at the first step the initial tokens, whatever the first frame holds; at
    each later one the token before and the frame that has just come. Of the head, the outputs that moshi has."""
    model = pair()[0]
    frames = given[..., : given.shape[2] // FRAME * FRAME]
    codes = model.codec_model.encode(frames).audio_codes
    text = [torch.full((len(given),), TEXTS - 1)]
    cache = None
    for step in range(codes.shape[2]):
        heard = torch.full((len(given), 8), CODES - 1) if step == 0 else codes[:, :, step]
        ids = torch.cat((text[-1][:, None], heard), 1)[:, None]
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        text.append(output.logits[:, 0, : TEXTS - 1].argmax(-1))
    return torch.stack(text, 1)


@pytest.mark.parametrize(("rows", "samples"), [(3, 31 * FRAME + 17), (1, 2 * FRAME), (2, FRAME)])
def test_tokens_are_moshis(rows: int, samples: int) -> None:
    given = audio(rows, samples)
    with torch.no_grad():
        expected = by_the_rules_of_moshi(given)
    assert torch.equal(pair()[1].generate(given, alignment="moshi"), expected)


def test_the_token_that_moshi_lacks_is_never_written() -> None:
    """Where all other logits are below 0, the row of zeros would win."""
    model = copy.deepcopy(pair()[1])
    with torch.no_grad():
        model.lm_head.weight[-1] = 0
    given = audio(2, 20 * FRAME)

    def lowered(scores: torch.Tensor) -> torch.Tensor:
        return scores - scores.amax(1, keepdim=True) - 1

    class Lowered(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = super().forward(x)
            return torch.cat((lowered(scores[:, :-1]), scores[:, -1:]), 1)

    head = Lowered(32, TEXTS, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    assert (model.generate(given, alignment="hf")[:, 1:] == TEXTS - 1).all()
    assert (model.generate(given, alignment="moshi")[:, 1:] < TEXTS - 1).all()


@pytest.mark.parametrize("alignment", ["hf", "moshi"])
@pytest.mark.parametrize("window", [1, 3, None])
def test_rows_end_where_they_would_alone(alignment: str, window: int | None) -> None:
    """Each clip lies between two frames and a half of silence in front and three frames and a bit behind."""
    model = pair()[1]
    front, behind = 160, 200
    sizes = [1500, 700, 65, 1499]
    length = front + max(sizes) + behind
    given, mask = torch.zeros(4, 1, length), torch.zeros(4, length, dtype=torch.int32)
    noise = audio(4, 1500)
    for row, size in enumerate(sizes):
        given[row, 0, front : front + size] = noise[row, 0, :size]
        mask[row, front : front + size] = 1
    options: dict[str, Any] = {"alignment": alignment, "audio_window_size": window}
    found = model.generate(given, padding_mask=mask, stop_at_audio_end=True, **options)
    for row, size in enumerate(sizes):
        alone = model.generate(given[row : row + 1, :, : front + size + behind], **options)[0]
        assert torch.equal(found[row, : len(alone)], alone)
        assert (found[row, len(alone) :] == model.config.pad_token_id).all()
        assert len(alone) == 1 + (front + size + behind) // FRAME
    whole = model.generate(given, padding_mask=mask, **options)
    assert whole.shape == found.shape and not torch.equal(whole, found)
    limited = model.generate(given, padding_mask=mask, stop_at_audio_end=True, max_new_tokens=9, **options)
    cut = found[:, :10].clone()
    assert torch.equal(limited, cut)


def test_fewer_tokens_than_frames() -> None:
    given = audio(2, 12 * FRAME)
    model = pair()[1]
    expected = theirs_by(1, given, max_new_tokens=5)
    assert torch.equal(model.generate(given, max_new_tokens=5), expected)
    assert torch.equal(model.generate(given, GenerationConfig(max_new_tokens=5)), expected)
    with pytest.warns(UserWarning, match="max_new_tokens=13 is cut to 12"):
        assert model.generate(given, max_new_tokens=13).shape == (2, 13)


def test_sampling() -> None:
    given = audio(3, 12 * FRAME)
    theirs, ours = pair()
    options: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_k": 7}
    torch.manual_seed(3)
    expected = theirs.generate(input_values=given, **options)
    torch.manual_seed(3)
    found = ours.generate(given, **options)
    assert torch.equal(found, expected)
    assert not torch.equal(found, ours.generate(given))
    several = ours.generate(given, num_return_sequences=2, **options)
    assert several.shape == (6, 13)
    # One likeliest token is left to draw: every text is the greedy one of its own recording.
    one = ours.generate(given, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(one, ours.generate(given).repeat_interleave(2, 0))


def test_the_record() -> None:
    given = audio(2, 9 * FRAME)
    options: dict[str, Any] = {
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "output_hidden_states": True,
    }
    rules = {"repetition_penalty": 1.5}
    expected = theirs_by(1, given, **options, **rules)
    found = pair()[1].generate(given, **options, **rules)
    assert isinstance(found, GenerateDecoderOnlyOutput)
    assert torch.equal(found.sequences, expected.sequences)
    assert not torch.equal(found.sequences, pair()[1].generate(given))
    for name in ("scores", "logits"):
        assert len(found[name]) == 9
        assert all(worst(a, b) <= 1e-4 for a, b in zip(found[name], expected[name], strict=True))
    assert len(found.hidden_states) == 9 and len(found.hidden_states[0]) == 3
    for a, b in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert all(worst(x, y) <= 1e-4 for x, y in zip(a, b, strict=True))
    assert found.attentions is None and found.past_key_values.length == 9


def test_rules_criteria_and_streamers_of_the_caller() -> None:
    given = audio(2, 9 * FRAME)
    seen: list[torch.Tensor] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            seen.append(value)

        def end(self) -> None:
            seen.append(torch.tensor([-1]))

    def no_pads(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, :20] = -torch.inf
        return scores

    def after_six(ids: torch.Tensor, scores: Any) -> torch.Tensor:
        return torch.full((len(ids),), ids.shape[1] >= 6)

    options: dict[str, Any] = {"logits_processor": [no_pads], "stopping_criteria": [after_six]}
    expected = theirs_by(1, given, **options)
    found = pair()[1].generate(given, streamer=Streamer(), **options)
    assert torch.equal(found, expected) and found.shape == (2, 6)
    assert (found[:, 1:] >= 20).all()
    assert torch.equal(seen[0], found[:, :1]) and torch.equal(torch.stack(seen[1:-1], 1), found[:, 1:])


def test_a_token_that_ends_texts() -> None:
    given = audio(3, 20 * FRAME)
    plain = pair()[1].generate(given)
    end = int(plain[0, 4])
    expected = theirs_by(1, given, eos_token_id=end)
    found = pair()[1].generate(given, eos_token_id=end)
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain[:, : found.shape[1]])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"alignment": "whisper"}, "alignment must be 'hf' or 'moshi', got 'whisper'"),
        ({"num_beams": 2}, "num_beams: there is no beam search"),
        ({"output_attentions": True}, "output_attentions: attention weights are not recorded"),
        ({"assistant_model": object()}, "assistant_model: not implemented"),
        ({"audio_window_size": 0}, "audio_window_size must be positive, or None for all, got 0"),
        ({"stop_at_audio_end": True}, r"stop_at_audio_end needs the padding_mask, \(1, 640\)"),
        ({"stop_at_audio_end": True, "padding_mask": torch.ones(1, 9)}, r"the padding_mask, \(1, 640\)"),
        ({"attention_mask": torch.ones(1, 1)}, "neither a parameter of generate nor .* attention_mask"),
        ({"tempreature": 0.3}, "neither a parameter of generate nor .* tempreature"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
    ],
)
def test_what_is_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        pair()[1].generate(audio(1, 10 * FRAME), **options)


def test_audio_that_is_refused() -> None:
    model = pair()[1]
    with pytest.raises(ValueError, match="no audio: give input_values"):
        model.generate()
    with pytest.raises(ValueError, match="63 samples are no frame; one has 64"):
        model.generate(audio(1, 63))
    for wrong in (audio(1, 640)[0], torch.zeros(1, 2, 640), torch.zeros(1, 1, 640, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"input_values must be \(batch, 1, samples\) floats"):
            model.generate(wrong)


def test_a_config_of_transformers_says_the_same() -> None:
    """The parameters of generation that the conversion script writes."""
    written = {"audio_window_size": 1, "cache_implementation": "sliding_window", "bos_token_id": 129, "pad_token_id": 3}
    config = GenerationConfig(**TheirGenerationConfig(**written).to_diff_dict())
    given = audio(1, 10 * FRAME)
    assert torch.equal(pair()[1].generate(given, config), pair()[1].generate(given))

"""CohereAsr under `generate`, against transformers."""

from typing import Any

import pytest
import torch
from cohere_pair import ODD, START, audio, pair, tokens, worst


@pytest.fixture(scope="module", params=ODD)
def models(request: pytest.FixtureRequest) -> Any:
    return pair(request.param)


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5}]
)
def test_generate(models: Any, options: dict[str, Any]) -> None:
    theirs, ours = models
    inputs = audio(ours) | {"decoder_input_ids": torch.tensor([[START, 9, 10]] * 3), "max_new_tokens": 30}
    expected = theirs.generate(**inputs, **options)
    found = ours.generate(**inputs, audio_chunk_index=[(0, None)] * 3, **options)
    assert torch.equal(found, expected)
    assert len({tuple(row) for row in found.tolist()}) == len(found), "rows that say the same show little"


def test_generate_from_the_start_token(models: Any) -> None:
    theirs, ours = models
    inputs = audio(ours)
    expected = theirs.generate(**inputs, max_new_tokens=8)
    assert torch.equal(ours.generate(**inputs, max_new_tokens=8), expected)
    features = inputs.pop("input_features")
    assert torch.equal(ours.generate(features, **inputs, max_new_tokens=8), expected)
    given = ours.model.encoder(features, **inputs)
    assert torch.equal(ours.generate(encoder_outputs=given, max_new_tokens=8), expected)


def test_a_row_writes_the_same_alone(models: Any) -> None:
    _, ours = models
    inputs = audio(ours)
    options = {"max_new_tokens": 12, "eos_token_id": None}
    together = ours.generate(**inputs, **options)
    for row in range(3):
        alone = ours.generate(**{name: value[row : row + 1] for name, value in inputs.items()}, **options)
        assert torch.equal(alone[0], together[row])


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


def test_the_audio_is_heard_once(models: Any) -> None:
    _, ours = models
    calls = {"encoder": 0, "proj": 0}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    hooks = [
        ours.model.encoder.register_forward_hook(count("encoder")),
        ours.model.decoder.proj.register_forward_hook(count("proj")),
    ]
    ours.generate(**audio(ours), max_new_tokens=10, min_new_tokens=10)
    for hook in hooks:
        hook.remove()
    assert calls == {"encoder": 1, "proj": 1}


def test_no_more_tokens_than_positions(models: Any) -> None:
    _, ours = models
    with pytest.warns(UserWarning, match="positions for 40 tokens"):
        found = ours.generate(**audio(ours), max_new_tokens=60, eos_token_id=None)
    assert found.shape == (3, 40)

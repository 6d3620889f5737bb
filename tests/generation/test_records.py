"""Attention weights, hidden states and scores of `generate`, as transformers nests them."""

from typing import Any

import pytest
import torch

from tests.models.cohere_asr import cohere_pair
from tests.models.moonshine import moonshine_pair
from tests.models.speech_to_text import s2t_pair

FIELDS = (
    "encoder_attentions",
    "encoder_hidden_states",
    "decoder_attentions",
    "cross_attentions",
    "decoder_hidden_states",
)


def assert_alike(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, torch.Tensor):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    else:
        assert isinstance(ours, tuple) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_alike(one, other)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["cohere", "moonshine", "speech_to_text"])
def test_every_field(name: str, beams: int) -> None:
    if name == "cohere":
        theirs, ours = cohere_pair.pair("three heads", "eager")
        inputs = cohere_pair.audio(ours)
        start: dict[str, Any] = {"decoder_input_ids": cohere_pair.tokens(3, 2)}
    elif name == "speech_to_text":
        theirs, ours = s2t_pair.pair("deep decoder")
        inputs, start = s2t_pair.audio(ours), {}
    else:
        theirs, ours = moonshine_pair.pair("three heads", "eager")
        inputs, start = moonshine_pair.audio(), {}
    asked = {"max_new_tokens": 5, "num_beams": beams, "eos_token_id": 4, "pad_token_id": 2, "do_sample": False}
    asked |= {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True}
    asked |= {"decoder_start_token_id": {"cohere": 7, "moonshine": 1, "speech_to_text": 2}[name]}
    asked |= {"output_scores": True}
    expected, found = theirs.generate(**inputs, **start, **asked), ours.generate(**inputs, **start, **asked)
    assert found.sequences.tolist() == expected.sequences.tolist()
    there = ours.encode(inputs).attention_mask.bool()
    for field in FIELDS:
        both = getattr(found, field), getattr(expected, field)
        if field.startswith("encoder"):
            # What frames of padding attend to, and become, is nobody's concern.
            both = tuple(tuple(layer.transpose(1, -2)[there] for layer in layers) for layers in both)
        assert_alike(*both)
    del asked["output_attentions"]
    fewer = ours.generate(**inputs, **start, **asked)
    assert fewer.cross_attentions is None and fewer.encoder_attentions is None
    assert len(fewer.decoder_hidden_states) == len(found.decoder_hidden_states)

    for normalize in (False, True):
        given = {"beam_indices": found.beam_indices} if beams > 1 else {}
        scores = theirs.compute_transition_scores(found.sequences, found.scores, **given, normalize_logits=normalize)
        ours_scores = ours.compute_transition_scores(found.sequences, found.scores, **given, normalize_logits=normalize)
        torch.testing.assert_close(ours_scores, scores)

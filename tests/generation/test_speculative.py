"""Speculative decoding: greedy search's tokens in fewer passes, and samples that are distributed as they should be."""

import copy
from typing import Any

import pytest
import torch

from fastspeech import GenerationConfig
from fastspeech.generation.speculative import draw
from tests.models.cohere_asr import cohere_pair
from tests.models.moonshine import moonshine_pair


def drafting(model: Any, spread: float) -> Any:
    """A model that mostly agrees with another one."""
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(spread * parameter.std() * torch.randn_like(parameter)) if parameter.numel() > 1 else None
    return other


@pytest.mark.parametrize("name", ["cohere", "moonshine"])
def test_the_tokens_of_greedy_search(name: str) -> None:
    """In 100 cases over both models."""
    if name == "cohere":
        _, model = cohere_pair.pair("three heads")
    else:
        _, model = moonshine_pair.pair("three heads")
    start, key = (7, "input_features") if name == "cohere" else (1, "input_values")
    model.generation_config = GenerationConfig(eos_token_id=[3, 11], pad_token_id=2, decoder_start_token_id=start)
    tokens = passes = 0
    for case in range(50):
        torch.manual_seed(case)
        shape = (1, 40, model.config.encoder_config.num_mel_bins) if name == "cohere" else (1, 3000 + 37 * case)
        clip = {key: torch.randn(shape)}
        options: dict[str, Any] = {"max_new_tokens": 4 + case % 25}
        if case % 3 == 0:
            options |= {"no_repeat_ngram_size": 3, "repetition_penalty": 1.1}
        if case % 2:
            options["eos_token_id"] = None
        expected = model.generate(**clip, **options)
        draft = drafting(model, (0.0, 0.05, 0.2, 2.0)[case % 4])
        output = model.generate(
            **clip,
            **options,
            assistant_model=draft,
            num_assistant_tokens=1 + case % 6,
            num_assistant_tokens_schedule=("constant", "heuristic")[case % 2],
            assistant_confidence_threshold=(0.0, 0.3)[case % 5 == 0],
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert output.sequences.tolist() == expected.tolist()
        assert len(output.scores) == expected.shape[1] - 1
        assert [int(step.argmax()) for step in output.scores] == expected[0, 1:].tolist()
        tokens += expected.shape[1] - 1
        passes += output.target_passes
    print(f"{name}: {passes} passes for {tokens} tokens, {tokens - passes} saved")
    assert passes < 0.7 * tokens


def test_a_model_that_drafts_for_itself_is_always_right() -> None:
    _, model = cohere_pair.pair("grouped")
    clip = {name: tensor[:1] for name, tensor in cohere_pair.audio(model).items()}
    given = {"max_new_tokens": 24, "eos_token_id": None, "return_dict_in_generate": True, "assistant_model": model}
    given["assistant_confidence_threshold"] = 0.0
    for sampled in (False, True):
        output = model.generate(**clip, **given, num_assistant_tokens=5, do_sample=sampled)
        assert output.sequences.shape == (1, 25) and output.target_passes == 4
    assert (
        model.generate(**clip, **given, num_assistant_tokens=5, num_assistant_tokens_schedule="heuristic").target_passes
        == 3
    )
    encoded = model.encode(clip)
    assert model.generate(encoder_outputs=encoded, assistant_encoder_outputs=encoded, **given).target_passes == 2


def test_a_drafter_of_another_vocabulary() -> None:
    _, model = cohere_pair.pair("grouped")
    other = moonshine_pair.MoonshineForConditionalGeneration(
        moonshine_pair.MoonshineConfig(**{**moonshine_pair.settings("three heads"), "vocab_size": 51})
    )
    with pytest.raises(ValueError, match="vocabulary of 51 tokens, the model one of 50"):
        model.generate(torch.randn(1, 40, 24), assistant_model=other, max_new_tokens=3)


def test_samples_are_distributed_as_the_model_says() -> None:
    torch.manual_seed(0)
    wanted, drafted = torch.tensor([0.5, 0.2, 0.0, 0.3]), torch.tensor([0.1, 0.6, 0.2, 0.1])
    counts = torch.zeros(4)
    kept = 0
    for proposed in drafted.multinomial(8000, replacement=True).tolist():
        token = draw(wanted, proposed, drafted)
        counts[token] += 1
        kept += token == proposed
    assert (counts / 8000 - wanted).abs().max() < 0.02
    assert abs(kept / 8000 - torch.minimum(wanted, drafted).sum()) < 0.02

"""What the pages say of arguments that no signature shows, and what is refused, and why."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_cohere
import tiny_kyutai
import tiny_moonshine
import tiny_speech_to_text
import torch
import torch.nn.functional as F
import transformers

from fastspeech import (
    CohereAsrForConditionalGeneration,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    Speech2TextForConditionalGeneration,
    Speech2TextProcessor,
)

RATE = 16000


def noise(count: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(count)).astype(np.float32)


def logits(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3000) if isinstance(model, MoonshineForConditionalGeneration) else (1, 40, 80)
    if isinstance(model, CohereAsrForConditionalGeneration):
        shape = (1, 40, 16)
    audio = {model.main_input_name: torch.randn(shape, generator=generator)}
    with torch.no_grad():
        return model(**audio, decoder_input_ids=torch.tensor([[1, 5, 7]])).logits


@pytest.mark.parametrize(
    ("made", "fields"),
    [
        (tiny_cohere.model, ["hidden_act"]),
        (tiny_moonshine.model, ["encoder_hidden_act", "decoder_hidden_act"]),
        (tiny_speech_to_text.model, ["activation_function"]),
    ],
    ids=["cohere_asr", "moonshine", "speech_to_text"],
)
def test_an_activation_may_be_a_function(made: Any, fields: list[str]) -> None:
    model = made()
    found = []
    for choice in ("gelu", F.gelu, torch.sin):
        for field in fields:
            setattr(model.config, field, choice)
        other = type(model)(model.config).eval()
        other.load_state_dict(model.state_dict())
        other.tie_weights()
        found.append(logits(other))
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])


def test_settings_reach_extractor_and_tokenizer(tmp_path: Path) -> None:
    """Each has those that are its own, and none of the other's."""
    saved = tiny_speech_to_text.save(tmp_path, lang_codes="mustc")
    changed = {"do_upper_case": True, "tgt_lang": "de", "num_mel_bins": 40, "eos_token": "<unk>"}
    found = Speech2TextProcessor.from_pretrained(saved, **changed)
    assert found.feature_extractor.num_mel_bins == 40
    assert not {"do_upper_case", "tgt_lang", "eos_token"} & found.feature_extractor.to_dict().keys()
    assert (found.tokenizer.tgt_lang, found.tokenizer.eos_token) == ("de", "<unk>")
    assert "num_mel_bins" not in found.tokenizer.saved_settings()
    assert found.tokenizer.decode(found.tokenizer("hello")["input_ids"], skip_special_tokens=True) == "HELLO"


def generate(**options: Any) -> Any:
    model = tiny_moonshine.model()
    return model.generate(torch.from_numpy(noise(4000))[None], max_new_tokens=3, **options)


def extract(**options: Any) -> Any:
    return tiny_speech_to_text.processor()(noise(4000), sampling_rate=RATE, **options)


def from_file(folder: Path) -> Any:
    saved = tiny_speech_to_text.save(folder)
    return Speech2TextProcessor.from_pretrained(saved / "preprocessor_config.json")


def with_attention(folder: Path) -> Any:
    saved = tiny_speech_to_text.save(folder)
    return Speech2TextForConditionalGeneration.from_pretrained(saved, attn_implementation="flash_attention_2")


IDS = torch.tensor([[1]])
REFUSED: dict[str, tuple[Any, str, str]] = {
    "generate(synced_gpus=True)": (
        lambda _: generate(synced_gpus=True),
        "synced_gpus",
        "models are not sharded over GPUs, so there is nothing to keep in step",
    ),
    "generate(negative_prompt_ids=...)": (
        lambda _: generate(negative_prompt_ids=IDS),
        "negative_prompt_ids",
        "classifier-free guidance has no use in writing down what is said",
    ),
    "generate(negative_prompt_attention_mask=...)": (
        lambda _: generate(negative_prompt_attention_mask=IDS),
        "negative_prompt_ids",
        "as negative_prompt_ids",
    ),
    "generate(custom_generate='organisation/name')": (
        lambda _: generate(custom_generate="organisation/name"),
        "custom_generate must be a function",
        "no code is loaded by name; a function is taken",
    ),
    "MoonshineConfig(rope_scaling={'rope_type': 'yarn', ...})": (
        lambda _: MoonshineConfig(rope_scaling={"rope_type": "yarn", "factor": 2.0}),
        "rope_type 'yarn' is not implemented",
        "no Moonshine checkpoint has another rotary type than the default",
    ),
    "extractor(..., return_tensors='tf')": (
        lambda _: extract(return_tensors="tf"),
        "return_tensors must be 'pt', 'np' or None",
        "there is no TensorFlow here, nor in transformers 5",
    ),
    "Speech2TextProcessor.from_pretrained('.../preprocessor_config.json')": (
        from_file,
        "is a file; give the checkpoint's folder",
        "one file has no tokenizer; transformers fails at that",
    ),
    "from_pretrained(attn_implementation='flash_attention_2')": (
        with_attention,
        "must be 'eager' or 'sdpa'",
        "that library is not used; the op of this one is the fused attention",
    ),
}
"""What the pages name and is not served: how to ask for it, what the error says, and why."""


@pytest.mark.parametrize("asked", REFUSED)
def test_what_is_refused_is_refused_clearly(asked: str, tmp_path: Path) -> None:
    call, says, _ = REFUSED[asked]
    with pytest.raises((ValueError, RuntimeError), match=says):
        call(tmp_path)


@pytest.mark.parametrize("made", [tiny_cohere.model, tiny_moonshine.model, tiny_speech_to_text.model])
def test_a_new_model_has_the_spread_of_its_configuration(made: Any) -> None:
    config = made().config
    encoder = getattr(config, "encoder_config", None)
    if encoder is not None:
        encoder.initializer_range = 0.05
    config.initializer_range = config.init_std = 0.5
    model = type(made())(config)
    for name, parameter in model.named_parameters():
        narrow = encoder is not None and name.startswith("model.encoder")
        if parameter.dim() > 1 and parameter.numel() > 400 and "bias" not in name:
            assert parameter.std().item() == pytest.approx(0.05 if narrow else 0.5, rel=0.2), name
        elif name.endswith(".bias"):
            assert not parameter.any(), name
    padding = model.get_input_embeddings().padding_idx
    assert padding is None or not model.get_input_embeddings().weight[padding].any()


@pytest.mark.parametrize("made", [tiny_cohere.model, tiny_moonshine.model, tiny_speech_to_text.model])
def test_the_vocabulary_can_be_resized(made: Any, tmp_path: Path) -> None:
    """As transformers does, but for noise; what is left to say is said as before."""
    model = made()
    model.save_pretrained(tmp_path / "before")
    theirs: Any = getattr(transformers, type(model).__name__).from_pretrained(tmp_path / "before")
    before, size = logits(model), model.config.vocab_size
    for count, multiple, expected in ((size + 3, None, size + 3), (None, 16, -(-(size + 3) // 16) * 16), (20, 2, 20)):
        embedding = model.resize_token_embeddings(count, multiple)
        theirs.resize_token_embeddings(count, multiple)
        assert model.config.vocab_size == len(embedding.weight) == embedding.num_embeddings == expected
        tied = model.get_output_embeddings().weight is embedding.weight
        assert tied == model.config.tie_word_embeddings
        found = logits(model)
        assert found.shape == (1, 3, expected)
        assert torch.equal(found[..., : min(size, 20)], before[..., : min(size, 20)])
        state = theirs.state_dict()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, state[name], atol=1e-3, rtol=0)
        model.save_pretrained(tmp_path / "after")
        assert torch.equal(logits(type(model).from_pretrained(tmp_path / "after")), found)


def test_an_embedding_of_more_than_words_is_not_resized() -> None:
    model = tiny_kyutai.model()
    with pytest.raises(ValueError, match="cannot be resized"):
        model.resize_token_embeddings(model.config.vocab_size + 1)

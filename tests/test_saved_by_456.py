"""Checkpoints that transformers 4.56.2 wrote (tests/make_456.py), against what it computed with them."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import fastspeech
from fastspeech import (
    MoonshineForConditionalGeneration,
    MoonshineModel,
    Speech2TextForConditionalGeneration,
    Speech2TextModel,
    Speech2TextTokenizer,
    Tokenizer,
)

ROOT = Path(__file__).with_name("saved_by_456")
RATE = 16000
LABELS = torch.tensor([[5, 9, 14, 2], [7, 7, 2, -100]])


def opened(name: str) -> tuple[Any, Any, dict[str, Any], dict[str, torch.Tensor]]:
    """Model, processor, and what 4.56.2 said and computed."""
    folder = ROOT / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = fastspeech.AutoModelForSpeechSeq2Seq.from_pretrained(folder)
        processor = fastspeech.AutoProcessor.from_pretrained(folder)
    said = json.loads((folder / "expected.json").read_text())
    return model, processor, said, load_file(folder / "expected.safetensors")


def clips() -> list[np.ndarray]:
    noise = np.random.default_rng(456)
    return [(0.1 * noise.standard_normal(count)).astype(np.float32) for count in (8000, 5300)]


def test_moonshine() -> None:
    model, processor, said, computed = opened("moonshine")
    assert type(model) is MoonshineForConditionalGeneration and type(processor.tokenizer) is Tokenizer
    assert (model.config.partial_rotary_factor, model.config.rope_theta) == (0.62, 500.0)
    assert model.generation_config.max_length == 24
    inputs = processor(clips(), sampling_rate=RATE, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs, labels=LABELS).logits
    torch.testing.assert_close(logits, computed["logits"], atol=1e-4, rtol=0)
    greedy = model.generate(**inputs)
    assert greedy.tolist() == said["greedy"]
    assert model.generate(**inputs, num_beams=3).tolist() == said["beams"]
    assert processor.batch_decode(greedy, skip_special_tokens=True) == said["texts"]
    assert processor.tokenizer("a word")["input_ids"] == said["ids"]
    assert MoonshineModel.from_pretrained(ROOT / "moonshine").num_parameters() == model.num_parameters()


def test_moonshines_loss_shifts_once() -> None:
    """4.56.2 shifts labels that are shifted already."""
    model, processor, said, computed = opened("moonshine")
    inputs = processor(clips(), sampling_rate=RATE, padding=True, return_tensors="pt")
    with torch.no_grad():
        loss = model(**inputs, labels=LABELS).loss
    twice = cross_entropy(computed["logits"][:, :-1].flatten(0, 1), LABELS[:, 1:].flatten())
    assert said["loss"] == pytest.approx(twice.item(), abs=1e-5)
    once = cross_entropy(computed["logits"].flatten(0, 1), LABELS.flatten())
    assert loss.item() == pytest.approx(once.item(), abs=1e-4) and abs(once - twice) > 0.1


def test_speech_to_text() -> None:
    """From pytorch_model.bin, which holds the tied head twice."""
    model, processor, said, computed = opened("speech_to_text")
    assert type(model) is Speech2TextForConditionalGeneration and type(processor.tokenizer) is Speech2TextTokenizer
    assert (model.generation_config.num_beams, model.generation_config.max_length) == (5, 18)
    assert model.generation_config.early_stopping is True
    found = processor(clips(), sampling_rate=RATE, padding=True, return_tensors="pt")
    inputs = dict(found) | {"input_features": computed["input_features"]}
    torch.testing.assert_close(found["input_features"], inputs["input_features"], atol=5e-4, rtol=0)
    with torch.no_grad():
        output = model(**inputs, labels=LABELS.masked_fill(LABELS == 2, 4))
    torch.testing.assert_close(output.logits, computed["logits"], atol=1e-4, rtol=0)
    assert output.loss.item() == pytest.approx(said["loss"], abs=1e-5)
    for source in (inputs, found):
        assert model.generate(**source, num_beams=1).tolist() == said["greedy"]
        assert model.generate(**source).tolist() == said["beams"]
        french = model.generate(**source, forced_bos_token_id=processor.tokenizer.lang_code_to_id["fr"])
        assert french.tolist() == said["french"]
    assert processor.batch_decode(said["beams"], skip_special_tokens=True) == said["texts"]
    bare = Speech2TextModel.from_pretrained(ROOT / "speech_to_text")
    assert bare.num_parameters() == model.num_parameters()


def test_speech_to_texts_tokenizer_reads_small_letters() -> None:
    """As 4.56.2 does with do_lower_case; later versions ignore it."""
    _, processor, said, _ = opened("speech_to_text")
    tokenizer = processor.tokenizer
    assert tokenizer.do_lower_case and tokenizer.tgt_lang == "fr"
    assert tokenizer("MISTER Quilter")["input_ids"] == said["ids"] == tokenizer("mister quilter")["input_ids"]
    assert said["ids"][0] == tokenizer.lang_code_to_id["fr"]


@pytest.mark.parametrize("name", ["moonshine", "speech_to_text"])
def test_saved_again_and_read_by_a_later_version(name: str, tmp_path: Path) -> None:
    model, processor, said, _ = opened(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    theirs = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
    inputs = transformers.AutoProcessor.from_pretrained(tmp_path)(
        clips(), sampling_rate=RATE, padding=True, return_tensors="pt"
    )
    assert theirs.generate(**inputs, num_beams=1).tolist() == said["greedy"]

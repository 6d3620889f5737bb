"""Speech2Text's files and processor, of transformers 4 and 5, and the page's examples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from s2t_pair import ODD, audio, pair, settings, tokens, worst
from s2t_text import save_vocabulary

import fastspeech
from fastspeech import (
    CheckpointError,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Speech2TextModel,
    Speech2TextProcessor,
    Speech2TextTokenizer,
)

RATE = 16000
DEFAULTS = {"num_beams": 5, "max_length": 200, "early_stopping": True}
"""What the released checkpoints say of generation."""


@pytest.mark.parametrize("name", ODD)
def test_round_trips(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", max_shard_size="30KB")
    assert list((tmp_path / "ours").glob("*.index.json"))
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 6)}
    with torch.no_grad():
        expected = theirs(**inputs).logits
        for folder in ("theirs", "ours"):
            here = Speech2TextForConditionalGeneration.from_pretrained(tmp_path / folder)
            assert worst(here(**inputs).logits, expected) <= 1e-4
            bare = Speech2TextModel.from_pretrained(tmp_path / folder)
            assert worst(bare(**inputs).last_hidden_state, theirs.model(**inputs).last_hidden_state) <= 1e-4
            there = transformers.Speech2TextForConditionalGeneration.from_pretrained(tmp_path / folder)
            assert worst(there(**inputs).logits, expected) <= 1e-4
    half = Speech2TextForConditionalGeneration.from_pretrained(tmp_path / "ours", dtype="bfloat16")
    low = inputs | {"input_features": inputs["input_features"].bfloat16()}
    assert half(**low).logits.dtype == torch.bfloat16


def test_a_checkpoint_as_the_hub_holds_it(tmp_path: Path) -> None:
    """Of transformers 3 and 4: a .bin file with tied tensors and tables of positions, generation settings in
    config.json."""
    sizes = {"max_target_positions": 300}
    theirs, ours = pair("deep decoder", **sizes)
    state = dict(theirs.state_dict())
    for side in ("encoder", "decoder"):
        state[f"model.{side}.embed_positions.weights"] = torch.zeros(9, 36)
        state[f"model.{side}.embed_positions._float_tensor"] = torch.zeros(1)
    torch.save(state, tmp_path / "pytorch_model.bin")
    values = settings("deep decoder") | sizes | DEFAULTS
    values |= {"model_type": "speech_to_text", "transformers_version": "4.4.0"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = fastspeech.AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path)
    assert isinstance(found, Speech2TextForConditionalGeneration)
    inputs = audio(ours)
    assert worst(found(**inputs, labels=tokens(3, 5)).logits, ours(**inputs, labels=tokens(3, 5)).logits) <= 1e-5
    generated = found.generate(**inputs)
    assert torch.equal(generated, theirs.generate(**inputs, **DEFAULTS))
    found.save_pretrained(tmp_path / "again")
    again = transformers.Speech2TextForConditionalGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(again.generate(**inputs), generated)


def test_generation_config_goes_before_config(tmp_path: Path) -> None:
    _, ours = pair("untied")
    ours.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | DEFAULTS))
    (tmp_path / "generation_config.json").write_text(json.dumps({"num_beams": 3, "max_length": 12}))
    found = Speech2TextForConditionalGeneration.from_pretrained(tmp_path).generation_config
    assert (found.num_beams, found.max_length, found.early_stopping) == (3, 12, None)


def test_a_wrong_checkpoint_says_what_is_wrong(tmp_path: Path) -> None:
    pair("untied")[1].save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"encoder_layers": 3}))
    with pytest.raises(CheckpointError, match=r"encoder\.layers\.2"):
        Speech2TextForConditionalGeneration.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values | {"num_conv_layers": 2}))
    with pytest.raises(CheckpointError, match="num_conv_layers=2"):
        Speech2TextForConditionalGeneration.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub ids of the page's examples hold, small and random, saved by transformers."""
    folder = tmp_path_factory.mktemp("s2t")
    sizes = {"vocab_size": 110, "input_feat_per_channel": 80, "max_target_positions": 300}
    theirs, _ = pair("deep decoder", **sizes)
    for name, value in DEFAULTS.items():
        setattr(theirs.generation_config, name, value)
    theirs.save_pretrained(folder)
    processor(transformers, folder / "files").save_pretrained(folder)
    return folder


def processor(library: Any, folder: Path) -> Any:
    tokenizer = library.Speech2TextTokenizer(**save_vocabulary(folder), lang_codes="mustc")
    return library.Speech2TextProcessor(library.Speech2TextFeatureExtractor(), tokenizer)


def clips(*seconds: float) -> list[np.ndarray]:
    noise = np.random.default_rng(0)
    return [(noise.standard_normal(int(s * RATE)) * 0.1).astype(np.float32) for s in seconds]


@pytest.mark.parametrize("version", [4, 5])
def test_processor_files_of_either_version(checkpoint: Path, tmp_path: Path, version: int) -> None:
    for file in checkpoint.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    if version == 4:
        values = json.loads((tmp_path / "processor_config.json").read_text())["feature_extractor"]
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
        (tmp_path / "processor_config.json").unlink()
    ours = fastspeech.AutoProcessor.from_pretrained(tmp_path)
    assert type(ours) is Speech2TextProcessor
    assert type(ours.tokenizer) is type(fastspeech.AutoTokenizer.from_pretrained(tmp_path)) is Speech2TextTokenizer
    assert type(fastspeech.AutoFeatureExtractor.from_pretrained(tmp_path)) is Speech2TextFeatureExtractor
    ours.save_pretrained(tmp_path / "again")
    theirs = transformers.Speech2TextProcessor.from_pretrained(tmp_path / "again")
    given: dict[str, Any] = {"sampling_rate": RATE, "return_tensors": "pt", "padding": True}
    expected = theirs(audio=clips(0.4, 0.6), text=["hello world", "mister"], **given)
    found = ours(audio=clips(0.4, 0.6), text=["hello world", "mister"], **given)
    assert set(found) == set(expected) == {"input_features", "attention_mask", "labels"}
    for name in expected:
        assert worst(found[name].float(), expected[name].float()) <= 5e-4, name


def test_the_processors_arguments(tmp_path: Path) -> None:
    ours = processor(fastspeech, tmp_path)
    (wave,) = clips(0.3)
    found = ours(wave, sampling_rate=RATE)["input_features"]
    assert torch.equal(ours(audio=wave, sampling_rate=RATE)["input_features"], found)
    with pytest.warns(FutureWarning, match="raw_speech"):
        assert torch.equal(ours(raw_speech=wave, sampling_rate=RATE)["input_features"], found)
    padded = ours(wave, "max_length", 50, sampling_rate=RATE)
    assert padded["input_features"].shape[1] == 50
    ids = ours.tokenizer("hello")["input_ids"]
    assert ours(text="hello")["input_ids"] == ids
    both = ours(wave, text="hello", sampling_rate=RATE, text_kwargs={"add_special_tokens": False})
    assert both["labels"] == ids[1:-1]
    with pytest.warns(FutureWarning, match="text="), ours.as_target_processor():
        assert ours("hello")["input_ids"] == ids
    assert "input_features" in ours(wave, sampling_rate=RATE)
    assert ours.decode(ids, skip_special_tokens=True) == "hello"
    assert ours.batch_decode([ids, ids], skip_special_tokens=True) == ["hello", "hello"]
    with pytest.raises(ValueError, match="audio, text or both"):
        ours(sampling_rate=RATE)


def test_a_step_of_training_from_the_processor(checkpoint: Path) -> None:
    ours = Speech2TextProcessor.from_pretrained(checkpoint)
    model = Speech2TextForConditionalGeneration.from_pretrained(checkpoint).train()
    inputs = ours(clips(0.3, 0.5), text=["hello", "world"], sampling_rate=RATE, padding=True, return_tensors="pt")
    model(**inputs).loss.backward()
    assert model.model.encoder.conv.conv_layers[0].weight.grad.abs().max() > 0


def test_the_pages_examples(checkpoint: Path) -> None:
    """With a random checkpoint in the place of the hub's, and noise in the place of the data set."""
    ds = [{"audio": {"array": clips(1.0)[0].astype(np.float64), "sampling_rate": RATE}}]

    configuration = Speech2TextConfig(**settings("deep decoder"))
    model = Speech2TextModel(configuration)
    configuration = model.config

    model = Speech2TextForConditionalGeneration.from_pretrained(checkpoint)
    processor = Speech2TextProcessor.from_pretrained(checkpoint)
    theirs = transformers.Speech2TextForConditionalGeneration.from_pretrained(checkpoint)
    there = transformers.Speech2TextProcessor.from_pretrained(checkpoint)

    inputs = processor(ds[0]["audio"]["array"], sampling_rate=ds[0]["audio"]["sampling_rate"], return_tensors="pt")
    generated_ids = model.generate(inputs["input_features"], attention_mask=inputs["attention_mask"])
    transcription = processor.batch_decode(generated_ids, skip_special_tokens=True)
    given = there(ds[0]["audio"]["array"], sampling_rate=RATE, return_tensors="pt")
    expected = theirs.generate(given["input_features"], attention_mask=given["attention_mask"])
    assert transcription == there.batch_decode(expected, skip_special_tokens=True)

    generated_ids = model.generate(
        inputs["input_features"],
        attention_mask=inputs["attention_mask"],
        forced_bos_token_id=processor.tokenizer.lang_code_to_id["fr"],
    )
    translation = processor.batch_decode(generated_ids, skip_special_tokens=True)
    assert generated_ids[0, 1] == processor.tokenizer.lang_code_to_id["fr"] and len(translation) == 1

    model = Speech2TextModel.from_pretrained(checkpoint)
    feature_extractor = fastspeech.AutoFeatureExtractor.from_pretrained(checkpoint)
    inputs = feature_extractor(
        ds[0]["audio"]["array"], sampling_rate=ds[0]["audio"]["sampling_rate"], return_tensors="pt"
    )
    input_features = inputs.input_features
    decoder_input_ids = torch.tensor([[1, 1]]) * model.config.decoder_start_token_id
    last_hidden_state = model(input_features, decoder_input_ids=decoder_input_ids).last_hidden_state
    assert list(last_hidden_state.shape) == [1, 2, model.config.d_model]

    model = Speech2TextForConditionalGeneration.from_pretrained(checkpoint)
    generated_ids = model.generate(inputs=input_features)
    assert processor.batch_decode(generated_ids, skip_special_tokens=True) == transcription

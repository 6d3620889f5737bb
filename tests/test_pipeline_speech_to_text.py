"""The pipeline and the command with Speech2Text: five beams by default, translation, words and their times."""

import json
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_speech_to_text
import torch
import transformers
from media import encode
from numpy.typing import NDArray

from fastspeech import Speech2TextForConditionalGeneration, Speech2TextProcessor, pipeline
from fastspeech.cli import main

RATE = 16000


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_speech_to_text.save(tmp_path_factory.mktemp("s2t") / "s2t-tiny", lang_codes="mustc")


@pytest.fixture(scope="module")
def recognise(checkpoint: Path) -> Any:
    return pipeline(model=checkpoint, device=-1)


def ears(recognise: Any) -> tuple[Speech2TextForConditionalGeneration, Speech2TextProcessor]:
    return recognise.model, recognise.processor


def test_texts_are_those_of_transformers(checkpoint: Path, recognise: Any) -> None:
    """By the checkpoint's own five beams, in one padded batch and alone."""
    theirs: Any = transformers.pipeline("automatic-speech-recognition", model=str(checkpoint), device="cpu")
    clips = [noise(1.0), noise(0.4, 1), noise(1.7, 2)]
    expected = [theirs(clip.copy())["text"].strip() for clip in clips]
    assert [recognise(clip)["text"] for clip in clips] == expected
    assert len(set(expected)) == 3
    there: Any = transformers.Speech2TextProcessor.from_pretrained(checkpoint)
    inputs = there(clips, sampling_rate=RATE, padding=True, return_tensors="pt")
    rows = theirs.model.generate(**inputs)
    expected = [text.strip() for text in there.batch_decode(rows, skip_special_tokens=True)]
    assert [result["text"] for result in recognise(clips)] == expected


def test_the_checkpoints_limit_cuts(recognise: Any) -> None:
    result = recognise(noise(1.0))
    assert result["truncated"]
    short = recognise(noise(1.0), max_new_tokens=4)
    assert short["truncated"] and len(short["text"]) < len(result["text"])


def test_translation(recognise: Any) -> None:
    """The language's token is no part of the text, nor of a word."""
    model, processor = ears(recognise)
    french = processor.tokenizer.lang_code_to_id["fr"]
    options = {"forced_bos_token_id": french}
    result = recognise(noise(1.0), generate_kwargs=options, return_timestamps="word", return_confidence=True)
    inputs = processor(noise(1.0), sampling_rate=RATE, return_tensors="pt")
    (ids,) = model.generate(**inputs, **options).tolist()
    assert ids[:2] == [2, french]
    assert result["text"] == processor.decode(ids, skip_special_tokens=True).strip() != recognise(noise(1.0))["text"]
    assert " ".join(word["text"] for word in result["chunks"]) == result["text"]
    pieces = [token["text"] for token in result["tokens"]]
    assert pieces == processor.tokenizer.convert_ids_to_tokens(ids[2:])
    with pytest.raises(ValueError, match="no choice of language"):
        recognise(noise(1.0), language="fr")


@pytest.mark.parametrize("beams", [1, 5])
def test_words_and_confidence(recognise: Any, beams: int) -> None:
    """Words make the text, their times are in order within each clip, and probabilities are those of the steps."""
    model, processor = ears(recognise)
    seconds = [1.0, 0.4, 2.0]
    clips = [noise(length, seed) for seed, length in enumerate(seconds)]
    options: dict[str, Any] = {"num_beams": beams}
    found = recognise(clips, **options, return_timestamps="word", return_confidence=True)
    plain = recognise(clips, **options)
    for clip, length, result, expected in zip(clips, seconds, found, plain, strict=True):
        inputs = processor(clip, sampling_rate=RATE, return_tensors="pt")
        output = model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True)
        assert result["text"] == expected["text"] == " ".join(word["text"] for word in result["chunks"])
        times = [time for word in result["chunks"] for time in word["timestamp"]]
        assert times == sorted(times) and times[0] >= 0 and times[-1] == length
        ids = output.sequences[0, 1:].tolist()
        steps = 0 if beams == 1 else output.beam_indices[0]
        chosen = torch.stack(output.logits, 1)[steps, torch.arange(len(ids))]
        expected = chosen.softmax(-1)[torch.arange(len(ids)), ids].tolist()
        assert [token["confidence"] for token in result["tokens"]] == pytest.approx(expected, abs=1e-5)


def test_times_follow_what_is_attended_to(recognise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a text put into its mouth and attention that goes along the clip, a word begins where its first token
    looks."""
    model, processor = ears(recognise)
    said = "mister quilter is the apostle of the middle classes"
    script = processor.tokenizer(said, add_special_tokens=False)["input_ids"]
    forward = type(model).forward

    @wraps(forward)
    def along(self: Any, *given: Any, **options: Any) -> Any:
        output = forward(self, *given, **options)
        layers = []
        for weights in output.cross_attentions:
            tokens, frames = weights.shape[-2:]
            distance = torch.arange(tokens)[:, None] * (frames / tokens) - torch.arange(frames)
            layers.append((-distance.square() / 8).softmax(-1).expand_as(weights))
        output.cross_attentions = tuple(layers)
        return output

    monkeypatch.setattr(type(model), "forward", along)
    options = {
        "num_beams": 1,
        "max_new_tokens": len(script),
        "prefix_allowed_tokens_fn": lambda _, ids: [script[len(ids) - 1]],
    }
    result = recognise(noise(6.0), return_timestamps="word", generate_kwargs=options)
    assert [word["text"] for word in result["chunks"]] == said.split()
    pieces = processor.tokenizer.convert_ids_to_tokens(script)
    first = [number for number, piece in enumerate(pieces) if piece.startswith("▁")]
    starts = [word["timestamp"][0] for word in result["chunks"]]
    assert starts == pytest.approx([6.0 * number / len(script) for number in first], abs=6.0 / len(script))


def test_a_bad_recording_is_one_error(recognise: Any) -> None:
    results = recognise([noise(0.5), noise(0.02), np.full(8000, np.nan, np.float32), noise(0.6, 1)])
    assert ["error" in result for result in results] == [False, True, True, False]
    assert "at least 400" in results[1]["error"] and "NaN" in results[2]["error"]
    assert results[0]["text"] == recognise(noise(0.5))["text"]


def test_long_recordings_are_cut_where_it_is_quiet(recognise: Any) -> None:
    sound = noise(40)
    sound[RATE * 20 : RATE * 21] = 0
    result = recognise(sound, return_timestamps="word", max_new_tokens=3, num_beams=2)
    pieces = [
        recognise(part, max_new_tokens=3, num_beams=2)["text"] for part in (sound[: RATE * 20], sound[RATE * 20 :])
    ]
    assert result["text"] == " ".join(piece for piece in pieces if piece)
    times = [time for word in result["chunks"] for time in word["timestamp"]]
    assert times == sorted(times) and times[-1] == 40.0 and 20.0 in times


def test_the_command(checkpoint: Path, tmp_path: Path, recognise: Any, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.wav"
    file.write_bytes(encode(noise(1)[None], RATE))
    expected = recognise(str(file), return_timestamps="word")
    given = ["transcribe", str(file), "--model", str(checkpoint), "--device", "cpu", "--word-timestamps"]
    assert main([*given, "--format", "json"]) == 0
    (segment,) = json.loads(capsys.readouterr().out)["segments"]
    assert segment["text"] == expected["text"]
    assert [word["text"] for word in segment["words"]] == [word["text"] for word in expected["chunks"]]
    for kind in ("srt", "vtt"):
        assert main([*given, "--format", kind]) == 0
        assert capsys.readouterr().out.count("-->") == len(expected["chunks"])

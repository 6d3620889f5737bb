"""The pipeline with a model that says the same over and over: limits by the length of the audio."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_moonshine
from media import encode
from numpy.typing import NDArray

from fastspeech import GenerationConfig, pipeline
from fastspeech.cli import main


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16000))).astype(np.float32)


def words(result: dict[str, Any]) -> int:
    return len(result["text"].split())


def test_tokens_are_limited_by_the_length_of_each_recording() -> None:
    recognise = pipeline(model=tiny_moonshine.model(), processor=tiny_moonshine.processor())
    results = recognise([noise(1), noise(0.3), noise(2)])
    assert [words(result) for result in results] == [7, 2, 13]
    assert all(result["truncated"] for result in results)
    assert [words(result) for result in recognise([noise(1), noise(2)], num_beams=2)] == [7, 13]


@pytest.mark.parametrize(
    ("options", "call", "expected"),
    [
        ({"max_tokens_per_second": 3}, {}, [3, 6]),
        ({"max_tokens_per_second": math.inf}, {}, [193, 193]),
        ({"max_tokens_per_second": 130}, {}, [130, 260]),
        ({}, {"max_new_tokens": 9}, [7, 9]),
        ({}, {"max_length": 9}, [7, 8]),
        ({}, {"generation_config": GenerationConfig(max_new_tokens=8)}, [7, 8]),
        ({"max_tokens_per_second": math.inf}, {"max_new_tokens": 9}, [9, 9]),
    ],
    ids=str,
)
def test_the_strictest_limit_of_the_caller_holds(
    options: dict[str, Any], call: dict[str, Any], expected: list[int]
) -> None:
    """The checkpoint's own limit is for audio of 30 s."""
    recognise = pipeline(model=tiny_moonshine.model(), processor=tiny_moonshine.processor(), **options)
    assert [words(result) for result in recognise([noise(1), noise(2)], **call)] == expected


def test_a_text_that_ends_within_its_limit_is_not_cut() -> None:
    model = tiny_moonshine.model(forced_eos_token_id=None)
    model.generation_config.suppress_tokens = None
    model.generation_config.sequence_bias = {(2,): 100.0}
    recognise = pipeline(model=model, processor=tiny_moonshine.processor())
    assert recognise([noise(1), noise(0.1)]) == [{"text": ""}] * 2


def test_a_limit_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_tokens_per_second must be positive, not 0"):
        pipeline(model=tiny_moonshine.model(), processor=tiny_moonshine.processor(), max_tokens_per_second=0)


def test_languages_far_from_ascii_have_twice_the_tokens(tmp_path: Path) -> None:
    for name, expected in (("moonshine-tiny", 7), ("moonshine-tiny-ja", 13), ("moonshine-tiny-es", 7)):
        assert words(pipeline(model=tiny_moonshine.save(tmp_path / name), device=-1)(noise(1))) == expected


def test_long_recordings_are_cut_where_it_is_quiet() -> None:
    """At 15 to 30 s of what is left."""
    sound = noise(40)
    sound[16000 * 20 : 16000 * 21] = 0
    recognise = pipeline(model=tiny_moonshine.model(), processor=tiny_moonshine.processor(), max_tokens_per_second=1)
    result = recognise(sound, return_timestamps=True)
    (first, second) = result["chunks"]
    assert first["timestamp"] == (0.0, 20.0) and second["timestamp"] == (20.0, 40.0)
    assert result["text"] == first["text"] + " " + second["text"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_moonshine.save(tmp_path / "model")
    file = tmp_path / "a.wav"
    file.write_bytes(encode(noise(2)[None], 16000))
    given = ["transcribe", str(file), "--model", str(checkpoint), "--format", "json", "--device", "cpu"]
    for options, expected in (([], 13), (["--max-tokens-per-second", "2.5"], 5)):
        assert main([*given, *options]) == 0
        captured = capsys.readouterr()
        assert words(json.loads(captured.out)) == expected
        assert "--max-tokens-per-second" in captured.err
    with pytest.raises(SystemExit):
        main([*given, "--max-tokens-per-second", "0"])


def test_words_and_confidence_against_the_steps_of_generate() -> None:
    """The probabilities are those under which the tokens were chosen; times are in order and within each chunk."""
    model, processor = tiny_moonshine.model(), tiny_moonshine.processor()
    recognise = pipeline(model=model, processor=processor, return_timestamps="word", return_confidence=True)
    seconds = [1.0, 0.4, 2.0]
    plain = pipeline(model=model, processor=processor)([noise(s, 1) for s in seconds])
    for length, result, expected in zip(seconds, recognise([noise(s, 1) for s in seconds]), plain, strict=True):
        assert result["text"] == expected["text"] == " ".join(word["text"] for word in result["chunks"])
        times = [time for word in result["chunks"] for time in word["timestamp"]]
        assert times == sorted(times) and times[0] == 0 and times[-1] == length
        assert [word["confidence"] for word in result["chunks"]] == [token["confidence"] for token in result["tokens"]]
        assert [token["text"] for token in result["tokens"]] == ["▁" + word["text"] for word in result["chunks"]]
    clip = processor(noise(1, 1), sampling_rate=16000, return_tensors="pt")
    output = model.generate(**clip, max_new_tokens=7, return_dict_in_generate=True, output_logits=True)
    probabilities = [
        step.softmax(-1)[0, token].item()
        for step, token in zip(output.logits, output.sequences[0, 1:].tolist(), strict=True)
    ]
    result = recognise(noise(1, 1), num_beams=1)
    assert [token["confidence"] for token in result["tokens"]] == pytest.approx(probabilities, abs=1e-5)
    assert "tokens" not in recognise(noise(1, 1), return_confidence=False)
    with pytest.raises(ValueError, match="return_timestamps='char'"):
        recognise(noise(1), return_timestamps="char")


def test_the_command_writes_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_moonshine.save(tmp_path / "model")
    file = tmp_path / "a.wav"
    file.write_bytes(encode(noise(1)[None], 16000))
    given = ["transcribe", str(file), "--model", str(checkpoint), "--device", "cpu", "--word-timestamps"]
    assert main([*given, "--format", "json", "--confidence"]) == 0
    (segment,) = json.loads(capsys.readouterr().out)["segments"]
    assert len(segment["words"]) == len(segment["tokens"]) == 7
    assert segment["words"][0].keys() == {"text", "start", "end", "confidence"}
    for kind in ("srt", "vtt"):
        assert main([*given, "--format", kind]) == 0
        assert capsys.readouterr().out.count("-->") == 7

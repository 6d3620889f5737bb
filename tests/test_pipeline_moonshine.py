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

"""The pipeline and the command with a model that writes a token for each frame it hears."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_kyutai
import torch
from media import encode
from numpy.typing import NDArray

from fastspeech import pipeline
from fastspeech.cli import main
from fastspeech.models.kyutai_stt.recordings import lag, write_down
from fastspeech.models.kyutai_stt.words import offline_words

RATE = 24000


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


CLIPS = [noise(1.3), noise(0.2, 1), noise(0.7, 2)]


def recogniser(**options: Any) -> Any:
    return pipeline(model=tiny_kyutai.model(), processor=tiny_kyutai.processor(), **options)


def test_each_recording_ends_with_its_own_audio() -> None:
    """Beside a longer one it is what it is alone, and what the processor and `generate` make of it."""
    recognise = recogniser()
    together = recognise(CLIPS)
    assert together == [recognise(clip) for clip in CLIPS]
    model, processor = recognise.model, recognise.processor
    for result, clip in zip(together, CLIPS, strict=True):
        tokens = model.generate(**processor(clip))
        assert result == {"text": processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()}
    assert len({result["text"] for result in together}) == 3


def test_other_rates_are_resampled() -> None:
    recognise = recogniser()
    slow = noise(1.0)[: RATE // 2]
    at_12 = recognise({"raw": slow, "sampling_rate": 12000})
    assert len(at_12["text"].split()) > len(recognise(slow)["text"].split())
    file = recognise(encode(slow[None], 24000))
    assert abs(len(file["text"]) - len(recognise(slow)["text"])) < 40


def test_a_long_recording_is_one_chunk() -> None:
    result = recogniser()(noise(40.0), return_timestamps=True)
    assert [chunk["timestamp"] for chunk in result["chunks"]] == [(0.0, 40.0)]


@pytest.mark.parametrize("options", [{}, {"alignment": "moshi"}, {"audio_window_size": 3}])
def test_words_and_confidence(options: dict[str, Any]) -> None:
    recognise = recogniser()

    def marked(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, 0] += 20 * (ids.shape[1] % 4 == 0)
        return scores

    options = options | {"logits_processor": [marked]}
    results = recognise(CLIPS, return_timestamps="word", return_confidence=True, **options)
    model, processor = recognise.model, recognise.processor
    late = {"alignment": 0, "audio_window_size": 4}.get(next(iter(options), ""), 2)
    found = 0
    for result, clip in zip(results, CLIPS, strict=True):
        record = model.generate(**processor(clip), **options, return_dict_in_generate=True, output_scores=True)
        tokens = record.sequences[0, 1:].tolist()
        sure = [scores[0].softmax(-1)[token].item() for token, scores in zip(tokens, record.scores, strict=True)]
        expected = [p for token, p in zip(tokens, sure, strict=True) if token > 3]
        assert [token["confidence"] for token in result["tokens"]] == pytest.approx(expected, abs=1e-5)
        words = offline_words(
            tokens, lambda ids: processor.decode(ids, skip_special_tokens=True), 12.5, 0.75 + late / 12.5
        )
        assert [chunk["text"] for chunk in result["chunks"]] == [word.text for word in words]
        for chunk, word in zip(result["chunks"], words, strict=True):
            assert chunk["timestamp"] == (word.start, word.end)
            assert chunk["confidence"] == pytest.approx(np.mean([sure[step] for step in word.steps]), abs=1e-5)
        found += len(words)
    assert found > 3


def test_lags() -> None:
    assert [lag("moshi", 1), lag("hf", None), lag("hf", 1), lag("hf", 3)] == [0, 1, 2, 4]


def test_a_limit_cuts() -> None:
    recognise = recogniser()
    results = recognise(CLIPS, max_new_tokens=30)
    # 1.3, 0.2 and 0.7 s, and 1.75 s of silence, make 38, 24 and 30 frames
    assert [result.get("truncated", False) for result in results] == [True, False, False]
    assert results[1:] == recognise(CLIPS)[1:]
    written = write_down(recognise.model, recognise.processor, [torch.from_numpy(CLIPS[0])], {"max_new_tokens": 30})
    assert len(written[0].tokens) == 30 and written[0].cut


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="has no choice of language"):
        recogniser()(CLIPS[0], language="fr")
    with pytest.raises(ValueError, match="writes a token for each frame"):
        recogniser(max_tokens_per_second=6.5)(CLIPS[0])


def test_narrow_models_hear_the_samples_as_they_are() -> None:
    model = tiny_kyutai.model().to(torch.bfloat16)
    heard = []
    encode_frames = model.codec_model.encode_frames
    model.codec_model.encode_frames = lambda samples, *rest: heard.append(samples) or encode_frames(samples, *rest)
    pipeline(model=model, processor=tiny_kyutai.processor())(CLIPS[1])
    assert heard[0].dtype == torch.float32
    samples = torch.cat(heard, 2)[0, 0]
    assert torch.equal(samples[1920 + 6000 : 1920 + 10800], torch.from_numpy(CLIPS[1]))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_kyutai.save(tmp_path / "model")
    file = tmp_path / "clip.flac"
    file.write_bytes(encode(CLIPS[0][None], 24000))
    assert main(["transcribe", str(file), "--model", str(folder), "--device", "cpu", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    expected = pipeline(model=folder, device=-1)(str(file))
    assert told["text"] == expected["text"] != ""

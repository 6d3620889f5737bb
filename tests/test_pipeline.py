"""The pipeline: every kind of input, long recordings, batches across files, bad items, what is cut."""

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_cohere
import torch
from media import encode, example, save
from numpy.typing import NDArray
from tiny_cohere import Clock

from fastspeech import AudioError, Engine, load_audio, pipeline
from fastspeech.pipelines import AutomaticSpeechRecognitionPipeline
from fastspeech.requests import Handle

RECORDINGS = Path(__file__).parents[1] / "../shared/data/audio"


def noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16000))).astype(np.float32)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recognise(clock: Clock) -> AutomaticSpeechRecognitionPipeline:
    return pipeline("automatic-speech-recognition", model=clock, processor=tiny_cohere.processor(), device=-1)


def test_every_kind_of_recording(recognise: AutomaticSpeechRecognitionPipeline, tmp_path: Path) -> None:
    data = example("flac", seconds=3)
    path = save(tmp_path / "a.flac", data)
    samples = load_audio(data)
    recordings = [
        path,
        str(path),
        data,
        bytearray(data),
        io.BytesIO(data),
        samples,
        samples.astype(np.float64),
        torch.from_numpy(samples),
        {"raw": samples, "sampling_rate": 16000},
        {"path": "a.flac", "array": samples, "sampling_rate": 16000},
        {"raw": load_audio(data, sampling_rate=44100), "sampling_rate": 44100},
        {"raw": torch.from_numpy(load_audio(data, sampling_rate=8000)), "sampling_rate": np.int64(8000)},
    ]
    for recording in recordings:
        assert recognise(recording) == {"text": "3s 3s 3s"}
        if isinstance(recording, io.BytesIO):
            recording.seek(0)
    assert recognise(recordings) == [{"text": "3s 3s 3s"}] * len(recordings)
    assert recognise(tuple(recordings[:2])) == [{"text": "3s 3s 3s"}] * 2
    assert recognise([]) == []


def test_long_recordings_are_cut_and_joined(recognise: AutomaticSpeechRecognitionPipeline, clock: Clock) -> None:
    """Chunks of at most 5 s, which end in their last second."""
    result = recognise(noise(17), return_timestamps=True)
    assert result["text"] == " ".join(chunk["text"] for chunk in result["chunks"])
    times = [chunk["timestamp"] for chunk in result["chunks"]]
    assert times[0][0] == 0 and times[-1][1] == 17 and len(times) == 4
    assert [start for start, _ in times[1:]] == [end for _, end in times[:-1]]
    for (start, end), chunk in zip(times, result["chunks"], strict=True):
        assert chunk["text"].split()[0] == f"{round(end - start)}s"
    assert max(clock.rows) == 4


def test_text_of_chunks_is_joined_without_spaces_where_the_language_has_none(
    recognise: AutomaticSpeechRecognitionPipeline,
) -> None:
    german = recognise(noise(9), language="de")["text"]
    japanese = recognise(noise(9), language="ja")["text"]
    assert len(german) == len(japanese) + 1
    assert german.replace(" ", "") == japanese.replace(" ", "")


@pytest.mark.parametrize("beams", [1, 2])
def test_chunks_of_all_recordings_are_decoded_together(
    recognise: AutomaticSpeechRecognitionPipeline, clock: Clock, beams: int
) -> None:
    seconds = [1, 9, 2, 3, 9, 4]
    results = recognise([noise(s) for s in seconds], batch_size=3, return_timestamps=True, num_beams=beams)
    assert [result["chunks"][-1]["timestamp"][1] for result in results] == seconds
    assert results[2]["text"] == "2s 2s"
    assert max(clock.rows) == 3 * beams


@pytest.fixture
def handles(monkeypatch: pytest.MonkeyPatch) -> list[Handle]:
    """Those of all that engines are asked for."""
    handles: list[Handle] = []
    submit = Engine.submit

    def noted(self: Engine, *given: Any, **named: Any) -> Handle:
        handles.append(submit(self, *given, **named))
        return handles[-1]

    monkeypatch.setattr(Engine, "submit", noted)
    return handles


def test_of_a_long_list_sixteen_batches_are_under_way(clock: Clock, handles: list[Handle]) -> None:
    recognise = pipeline(model=clock, processor=tiny_cohere.processor(), batch_size=2)
    told: list[tuple[float, float]] = []
    lock = threading.Lock()
    lock.acquire()
    encode = clock.encode
    clock.encode = lambda inputs: (lock.acquire(), lock.release(), encode(inputs))[2]
    transcripts = recognise.transcripts([noise(1)] * 40, progress=lambda *seconds: told.append(seconds))
    assert handles == []
    threading.Timer(0.2, lock.release).start()
    next(transcripts)
    assert len(handles) == 32
    assert len(list(transcripts)) == 39 and len(handles) == 40
    assert told[0][0] == 1 and told[-1] == (40, 40) and told == sorted(told)


def test_an_iterator_is_read_as_its_results_are(clock: Clock) -> None:
    recognise = pipeline(model=clock, processor=tiny_cohere.processor(), batch_size=2)
    taken: list[int] = []

    def microphone() -> Iterator[Any]:
        for second in range(1, 6):
            taken.append(second)
            yield noise(second)

    results = recognise(microphone())
    assert taken == []
    texts = []
    for number, result in enumerate(results, 1):
        assert number <= len(taken) <= number + 1
        texts.append(result["text"])
    assert texts == ["1s", "2s 2s", "3s 3s 3s", "4s 4s 4s 4s", "5s 5s 5s 5s 5s"]


def engines() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastspeech")]


def test_no_thread_stays_when_nobody_wants_further_results(
    recognise: AutomaticSpeechRecognitionPipeline, handles: list[Handle]
) -> None:
    recognise(noise(1))
    assert engines() == []
    results = recognise.transcripts([noise(4)] * 9)
    assert engines() == []
    next(results)
    assert engines()
    results.close()
    assert engines() == [] and all(handle.done() for handle in handles)

    def breaks_off() -> Iterator[Any]:
        yield noise(1)
        raise LookupError

    with pytest.raises(LookupError):
        list(recognise(breaks_off()))
    with pytest.raises(AudioError):
        recognise("nowhere.wav")
    assert engines() == []


def test_several_threads_call_at_once(recognise: AutomaticSpeechRecognitionPipeline) -> None:
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda second: recognise(noise(second)), [1, 2, 3, 4]))
    assert found == [{"text": " ".join([f"{second}s"] * second)} for second in (1, 2, 3, 4)]


def test_a_call_sees_the_model_as_it_is() -> None:
    """Written to, moved, or under inference_mode."""
    model = tiny_cohere.model()
    recognise = pipeline(model=model, processor=tiny_cohere.processor(), generate_kwargs={"max_new_tokens": 8})
    before = recognise(noise(2))
    with torch.no_grad():
        model.get_output_embeddings().weight.neg_()
    with torch.inference_mode():
        after = recognise(noise(2))
    assert after == recognise(noise(2)) != before
    other = pipeline(model=model.double(), processor=tiny_cohere.processor())
    assert other(noise(2), max_new_tokens=8) == recognise(noise(2)) == after


def test_what_is_drawn_follows_from_the_seed_whatever_is_beside_it() -> None:
    model, parts = tiny_cohere.model(), tiny_cohere.processor()
    recognise = pipeline(model=model, processor=parts, generate_kwargs={"do_sample": True, "max_new_tokens": 9})
    clips = [noise(2, n) for n in range(4)]
    torch.manual_seed(3)
    together = recognise(clips)
    assert together != recognise(clips)
    torch.manual_seed(3)
    assert together == [recognise(clip) for clip in clips]
    state = torch.get_rng_state()
    recognise(clips, do_sample=False)
    assert torch.equal(state, torch.get_rng_state())


class Generates:
    """A model of which no more is known than that it has `generate`."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, model: Any) -> None:
        self.generate, self.config, self.generation_config = model.generate, model.config, model.generation_config

    def eval(self) -> "Generates":
        return self


def test_what_only_generate_takes_goes_through_it() -> None:
    """One clip after another where it serves no more."""
    model, parts = tiny_cohere.model(), tiny_cohere.processor()
    recognise = pipeline(model=model, processor=parts, generate_kwargs={"max_new_tokens": 8})
    clips = [noise(9), np.zeros(0, np.float32), noise(3, 1)]
    expected = recognise(clips)
    assert expected[0]["text"] != expected[2]["text"] and "empty" in expected[1]["error"]
    assert recognise(clips, assistant_model=tiny_cohere.model(1)) == expected
    shown: list[int] = []
    streamer = SimpleNamespace(put=lambda ids: shown.extend(ids.flatten().tolist()), end=lambda: None)
    assert recognise(clips, streamer=streamer) == expected and len(shown) > 24
    assert recognise(clips, return_dict_in_generate=True, synced_gpus=False, num_return_sequences=1) == expected
    with pytest.raises(ValueError, match="synced_gpus"):
        recognise(clips, synced_gpus=True)
    only = AutomaticSpeechRecognitionPipeline(Generates(model), parts, generate_kwargs={"max_new_tokens": 8})
    assert only(clips) == expected
    silent = recognise(clips[0], custom_generate=lambda model, prompt, **more: prompt)
    assert silent["text"] == ""


BAD: list[tuple[Any, str]] = [
    ("nowhere.wav", r"nowhere\.wav: cannot be opened"),
    (b"not audio" * 30, "<270 bytes>: "),
    (example("wav")[:9000], "truncated"),
    (b"", "the file is empty"),
    (np.zeros(0, np.float32), "input 1: empty"),
    (np.zeros(319, np.float32), "input 1: 319 samples are too short; the model needs at least 320"),
    (np.full(16000, np.nan), "input 1: 16000 samples are NaN"),
    (np.zeros(16000, np.int16), "input 1: int16 samples"),
    (np.zeros((2, 16000)), r"input 1: shape \(2, 16000\)"),
    ({"raw": np.zeros(16000)}, "input 1: sampling_rate is None; state the rate"),
    ({"raw": np.zeros(16000), "sampling_rate": 0}, "input 1: sampling_rate is 0"),
    ({"raw": np.zeros(16000), "sampling_rate": 10**12}, "input 1: sampling_rate is 1000000000000"),
    ({"raw": np.zeros(16000), "sampling_rate": 9_999_999}, r"input 1: \d\d samples are too short"),
    ({"sampling_rate": 16000}, "input 1: a dictionary needs the samples"),
    ({"path": "b.wav", "array": np.zeros((2, 9)), "sampling_rate": 8000}, r"b\.wav: shape"),
    (encode(np.full((1, 8000), np.nan, np.float32), 16000, codec="pcm_f32le"), "8000 samples are NaN"),
    (encode(np.zeros((1, 100), np.float32), 16000), "100 samples are too short"),
]


@pytest.mark.parametrize(("recording", "fault"), BAD)
def test_one_bad_recording_is_one_error(
    recognise: AutomaticSpeechRecognitionPipeline, recording: Any, fault: str
) -> None:
    good = noise(2)
    results = recognise([good, recording, good], return_timestamps=True)
    assert [result.get("text") for result in results] == ["2s 2s", None, "2s 2s"]
    assert set(results[1]) == {"error"}
    with pytest.raises(AudioError, match=fault):
        raise AudioError(results[1]["error"])
    with pytest.raises(AudioError, match=fault.replace("input 1", "input 0")):
        recognise(recording)


def test_only_bad_recordings(recognise: AutomaticSpeechRecognitionPipeline, clock: Clock) -> None:
    assert all("error" in result for result in recognise(["nowhere.wav", b""]))
    assert clock.calls == []


@pytest.mark.parametrize("inputs", [5, None, [None], [0.1, 0.2], [[0.1, 0.2]]])
def test_what_is_no_recording_is_a_type_error(recognise: AutomaticSpeechRecognitionPipeline, inputs: Any) -> None:
    with pytest.raises(TypeError):
        recognise(inputs)


def test_what_the_limit_of_tokens_cuts_is_marked(recognise: AutomaticSpeechRecognitionPipeline, clock: Clock) -> None:
    cut, whole = recognise([noise(4), noise(2)], max_new_tokens=3)
    assert cut == {"text": "4s 4s 4s", "truncated": True} and whole == {"text": "2s 2s"}
    (transcript,) = recognise.transcripts([noise(8)], max_new_tokens=5)
    assert [segment.truncated for segment in transcript.segments] == [
        len(segment.text.split()) == 5 for segment in transcript.segments
    ]
    assert transcript.truncated == any(segment.truncated for segment in transcript.segments)
    tokenizer = recognise.processor.tokenizer
    assert "truncated" not in recognise(noise(2), eos_token_id=[0, tokenizer.eos_token_id])
    for never_said in (
        0,
        tokenizer.convert_tokens_to_ids("▁"),
    ):  # the second is in the prompt, which ends nothing
        assert recognise(noise(2), eos_token_id=never_said)["truncated"]


def test_silence_and_blank_chunks_give_no_text(recognise: AutomaticSpeechRecognitionPipeline, clock: Clock) -> None:
    assert recognise(np.zeros(6000, np.float32)) == {"text": ""}
    clock.hears = False
    result = recognise(noise(9), return_timestamps=True)
    assert result["text"] == "" and [chunk["text"] for chunk in result["chunks"]] == ["", ""]


def test_limits_and_prompts_reach_the_model(recognise: AutomaticSpeechRecognitionPipeline, clock: Clock) -> None:
    prompts = tiny_cohere.processor()
    recognise(noise(1))
    assert clock.calls[-1] == {"prompt": prompts.get_decoder_prompt_ids("en"), "max_new_tokens": 500}
    recognise(noise(1), generate_kwargs={"language": "de", "punctuation": False, "max_new_tokens": 7, "num_beams": 3})
    assert clock.calls[-1] == {
        "prompt": prompts.get_decoder_prompt_ids("de", punctuation=False),
        "max_new_tokens": 7,
        "num_beams": 3,
    }
    clock.decoder_positions = 60  # of which the prompt takes ten
    recognise(noise(1))
    assert clock.calls[-1]["max_new_tokens"] == 50


def test_options_of_the_pipeline_hold_for_its_calls(clock: Clock) -> None:
    recognise = pipeline(
        model=clock,
        processor=tiny_cohere.processor(),
        generate_kwargs={"max_new_tokens": 2, "language": "de"},
        return_timestamps=True,
        batch_size=1,
    )
    assert recognise([noise(3), noise(1)])[0]["chunks"] == [{"text": "3s 3s", "timestamp": (0.0, 3.0)}]
    assert max(clock.rows) == 1
    recognise(noise(1), language="en")
    assert clock.calls[-1]["max_new_tokens"] == 2
    assert clock.calls[-1]["prompt"] == tiny_cohere.processor().get_decoder_prompt_ids("en")


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"language": "xx"}, "Unsupported language: 'xx'"),
        ({"return_timestamps": "char"}, "there are the times of chunks"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"num_return_sequences": 2}, "one text for a recording"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(
    recognise: AutomaticSpeechRecognitionPipeline, options: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        recognise(["nowhere.wav"], **options)
    with pytest.raises(ValueError, match=fault):
        recognise("nowhere.wav", **options)


def test_a_choice_that_the_model_does_not_have_is_refused(clock: Clock) -> None:
    class Deaf:
        feature_extractor = tiny_cohere.processor().feature_extractor

        def __call__(self, audio: Any, sampling_rate: int) -> None: ...

    recognise = AutomaticSpeechRecognitionPipeline(clock, Deaf())
    with pytest.raises(ValueError, match="Clock has no choice of language and punctuation"):
        recognise(noise(1), language="en", punctuation=False)


def test_a_checkpoint_folder(tmp_path: Path) -> None:
    folder = tiny_cohere.save(tmp_path)
    recognise = pipeline(model=folder, dtype="float32", device="cpu")
    clips = [noise(2), noise(3, seed=1)]
    results = recognise(clips, max_new_tokens=8)
    processor, model = tiny_cohere.processor(), tiny_cohere.model()
    for clip, result in zip(clips, results, strict=True):
        inputs = processor(clip, language="en", sampling_rate=16000)
        text = processor.decode(model.generate(**inputs, max_new_tokens=8), skip_special_tokens=True)[0]
        assert result["text"] == text.strip() != ""


def test_a_model_that_is_given_is_moved_only_where_that_is_asked(tmp_path: Path) -> None:
    model, parts = tiny_cohere.model(), tiny_cohere.processor()
    pipeline(model=model.bfloat16(), processor=parts)
    assert model.dtype == torch.bfloat16
    pipeline(model=model.train(), processor=parts, device=-1, torch_dtype="float32")
    assert model.dtype == torch.float32 and model.device.type == "cpu" and not model.training
    folder = tiny_cohere.save(tmp_path)
    assert pipeline(model=folder, processor=folder, device_map="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_model_that_is_given_needs_a_processor(clock: Clock) -> None:
    with pytest.raises(ValueError, match="needs processor="):
        pipeline(model=clock)
    parts = tiny_cohere.processor()
    recognise = pipeline(model=clock, tokenizer=parts.tokenizer, feature_extractor=parts.feature_extractor)
    assert recognise(noise(1)) == {"text": "1s"}
    other = tiny_cohere.processor(max_audio_clip_s=100).feature_extractor
    recognise = pipeline(model=clock, processor=parts, feature_extractor=other)
    assert recognise(noise(9)) == {"text": " ".join(["9s"] * 9)}


def test_another_task() -> None:
    with pytest.raises(ValueError, match="there is no task 'translation'"):
        pipeline("translation")


def test_jfk(recognise: AutomaticSpeechRecognitionPipeline, tmp_path: Path) -> None:
    path = RECORDINGS / "jfk.flac"
    if not path.exists():
        pytest.skip("the shared recordings are not beside this checkout")
    assert recognise(path, return_timestamps=True)["chunks"][-1]["timestamp"][1] == 11.0
    assert isinstance(pipeline(model=tiny_cohere.save(tmp_path))(path)["text"], str)


def test_the_function_is_not_hidden_by_its_module() -> None:
    import fastspeech.pipelines

    assert fastspeech.pipeline is fastspeech.pipelines.pipeline


def test_words_of_a_model_with_a_prompt_and_chunks() -> None:
    """Each chunk's words lie within it, and the chunks' words are the text."""
    recognise = pipeline(model=tiny_cohere.model(), processor=tiny_cohere.processor())
    for options in ({}, {"num_beams": 2}):
        (transcript,) = recognise.transcripts([noise(9)], word_timestamps=True, max_new_tokens=6, **options)
        assert len(transcript.segments) == 2 and all(segment.words for segment in transcript.segments)
        for segment in transcript.segments:
            times = [time for word in segment.words for time in (word.start, word.end)]
            assert times == sorted(times) and times[0] == segment.start and times[-1] <= segment.end + 1e-9
            assert " ".join(word.text for word in segment.words).split() == segment.text.split()

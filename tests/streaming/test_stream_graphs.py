"""Streams on the device alone, on the CPU: what they tell is as it was, and their step is one that a graph can take."""

from typing import Any

import pytest
import tiny
import torch
from test_streaming import FRAME, Schedule, alone, check_same, drain

from fastspeech import StreamingTranscriber
from fastspeech.generation import graphs
from tests.generation.tape import as_on_a_gpu
from tests.generation.test_graphs import Watch


@pytest.mark.parametrize("alignment", ["moshi", "hf"])
def test_streams_that_come_and_go_are_as_if_alone(alignment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NaN in slots that are free."""
    audio = [tiny.sound(int(seconds * tiny.RATE), seed) for seed, seconds in enumerate((0.9, 1.7, 0.3, 1.1))]
    solos = [alone(samples, alignment=alignment) for samples in audio]
    as_on_a_gpu(monkeypatch)
    schedule = Schedule(3, audio, solos, alignment)
    assert schedule.streams.slots == 4
    schedule.run(7)
    assert min(schedule.streams._graphs.replays.values()) > 0


def test_buckets_are_recorded_before_the_first_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [tiny.sound(4 * FRAME, seed) for seed in range(5)]
    solos = [alone(each) for each in samples]
    log = as_on_a_gpu(monkeypatch)
    streams = StreamingTranscriber(tiny.model(), tiny.processor(), 6)
    assert streams._graphs.replays == {6: 0, 4: 0, 2: 0, 1: 0}
    count = len(log)
    slots = [streams.open() for _ in samples]
    for slot, each in zip(slots, samples, strict=True):
        streams.push(slot, each)
    for slot in slots:
        streams.flush(slot)
    events = drain(streams)
    for slot, solo in zip(slots, solos, strict=True):
        check_same([event for event in events if event.slot == slot], solo)
    for slot in slots[:2] + slots[3:]:
        streams.close(slot)
    assert len(log) == count and set(streams._graphs.replays.values()) == {0, streams._graphs.replays[6]}
    for bucket in (1, 2, 4):
        streams.push(streams.open(), samples[0][: FRAME - 1])
        streams.step()
        assert streams._graphs.replays[bucket] == 1


def test_nothing_of_a_frame_is_on_the_host_nor_of_other_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(graphs.Graphs, "record", lambda self, key, function: self._recorded.update({key: function}))
    streams = StreamingTranscriber(tiny.model(), tiny.processor(), 4)
    static: dict[str, Any] = {key: value for key, value in vars(streams).items() if isinstance(value, torch.Tensor)}
    addresses = {key: value.data_ptr() for key, value in static.items()}
    noted = []
    with torch.no_grad():
        frame: Any = streams._graphs._recorded[4]
        frame()
        for active in ([True, False, True, True], [False, True, False, False], [True] * 4):
            streams._flags[0] = torch.tensor(active)
            before = streams._state.decoder.positions.tolist()
            with Watch() as watch:
                frame()
            noted.append(watch.noted)
            after = streams._state.decoder.positions.tolist()
            assert [a - b for a, b in zip(after, before, strict=True)] == [int(flag) for flag in active]
    assert len(noted[0]) > 50 and noted[0] == noted[1] == noted[2]
    assert {key: vars(streams)[key].data_ptr() for key in static} == addresses


@pytest.mark.parametrize("alignment", ["moshi", "hf"])
def test_recordings_are_written_as_without_graphs(alignment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of different length, so that rows leave; and what is too short, or recorded, is not graphed."""
    model = tiny.model()
    samples = [torch.from_numpy(tiny.sound(count * FRAME, count)) for count in (40, 23, 31)]
    audio = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)[:, None]
    mask = torch.arange(40 * FRAME) < torch.tensor([[len(each)] for each in samples])
    cases: list[dict[str, Any]] = [
        {},
        {"padding_mask": mask, "stop_at_audio_end": True},
        {"max_new_tokens": 20},
        {"output_hidden_states": True},
    ]

    def written() -> list[Any]:
        options = {"alignment": alignment, "return_dict_in_generate": True, "output_scores": True}
        bare = model.generate(audio, alignment=alignment, **cases[1])
        return [bare, *(model.generate(audio, **options, **case) for case in cases)]

    expected = written()
    log = as_on_a_gpu(monkeypatch)
    found = written()
    assert found[0].equal(expected[0])
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        assert mine.sequences.equal(theirs.sequences)
        torch.testing.assert_close(torch.stack(mine.scores), torch.stack(theirs.scores), atol=1e-4, rtol=0)
    recorded = len(log)
    assert recorded == 4 * (1 + len(cases))
    model.generate(audio, alignment=alignment, max_new_tokens=15)
    assert len(log) == recorded


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_graphs_tell_what_frames_tell_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny.model().to("cuda"), tiny.processor()
    samples = [tiny.sound(int(seconds * tiny.RATE), seed) for seed, seconds in enumerate((0.9, 1.7, 0.3))]
    told = []
    for captured in (True, False):
        if not captured:
            monkeypatch.setattr(graphs, "captures", lambda device: False)
        streams = StreamingTranscriber(model, processor, 5)
        slots = [streams.open() for _ in samples]
        for slot, each in zip(slots, samples, strict=True):
            streams.push(slot, each)
            streams.flush(slot)
        events = drain(streams)
        told.append([[event for event in events if event.slot == slot] for slot in slots])
        if captured:
            assert streams._graphs.replays.keys() == {5, 4, 2, 1} and streams._graphs.replays[4] > 0
    for with_graphs, without in zip(*told, strict=True):
        check_same(with_graphs, without)

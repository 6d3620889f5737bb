"""Text as it is decoded, held against transformers' streamers."""

import queue
import threading
from typing import Any

import pytest
import torch
import transformers

from fastspeech import TextIteratorStreamer, TextStreamer
from tests.generation.toy import DIM, Toy

WORDS = ["<s>", "one", " two", "tw", "elve", " ", "\n", "中", "文", ", ", "'s", " three\n", "é", " fo", "ur"]


class Letters:
    """A tokenizer of WORDS, the first of which is special."""

    def decode(self, ids: Any, skip_special_tokens: bool = False, **kwargs: Any) -> str:
        return "".join(WORDS[i] for i in ids if i or not skip_special_tokens)


def pieces(streamer: Any, ids: list[int]) -> list[tuple[str, bool]]:
    """What a streamer makes of a prompt of two tokens and those that follow."""
    heard: list[tuple[str, bool]] = []
    streamer.on_finalized_text = lambda text, stream_end=False: heard.append((text, stream_end))
    streamer.put(torch.tensor([ids[:2]]))
    for token in ids[2:]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    return heard


@pytest.mark.parametrize("options", [{}, {"skip_prompt": True}, {"skip_special_tokens": True}], ids=str)
def test_as_transformers_prints(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = TextStreamer(Letters(), **options), transformers.TextStreamer(Letters(), **options)
    for _ in range(60):
        ids = torch.randint(len(WORDS), (14,), generator=generator).tolist()
        expected = pieces(theirs, ids)
        found = pieces(ours, ids)
        assert "".join(text for text, _ in found) == "".join(text for text, _ in expected)
        assert found == expected


def test_generate_prints(capsys: pytest.CaptureFixture[str]) -> None:
    toy = Toy()
    kinds = Letters()
    kinds.decode = lambda ids, **kwargs: "".join(f"{i} " for i in ids)  # type: ignore[method-assign]
    audio = torch.randn(1, 5, DIM, generator=torch.Generator().manual_seed(0))
    ids = toy.generate(audio, max_new_tokens=6, streamer=TextStreamer(kinds))
    assert capsys.readouterr().out == "".join(f"{i} " for i in ids[0].tolist()) + "\n"
    with pytest.raises(ValueError, match="prints one utterance, got 2"):
        toy.generate(audio.repeat(2, 1, 1), max_new_tokens=6, streamer=TextStreamer(kinds))


def test_kana_are_words() -> None:
    tokenizer = Letters()
    tokenizer.decode = lambda ids, **kwargs: "".join("oneか"[3 * i : 3 * i + 3] for i in ids)  # type: ignore[method-assign]
    assert pieces(TextStreamer(tokenizer), [0, 0, 1]) == [("", False), ("oneoneか", False), ("", True)]


def test_iterating() -> None:
    streamer = TextIteratorStreamer(Letters(), timeout=20)

    def decode() -> None:
        streamer.put(torch.tensor([[1, 2]]))
        streamer.put(torch.tensor([3]))
        streamer.put(torch.tensor([4]))
        streamer.end()

    thread = threading.Thread(target=decode)
    thread.start()
    assert "".join(streamer) == "one twotwelve"
    thread.join()
    with pytest.raises(queue.Empty):
        next(TextIteratorStreamer(Letters(), timeout=0.01))

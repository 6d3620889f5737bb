"""Text while it is decoded, with transformers' classes."""

from queue import Queue
from typing import Any

import torch


class TextStreamer:
    """Prints the text of one utterance as soon as its words are complete.

    A word is complete where a space follows it, a line where it ends, a Chinese character or a kana at once.

    Args:
        tokenizer: or a processor: what has `decode`.
        skip_prompt: leave the prompt out.
        **decode_kwargs: of `decode`, such as `skip_special_tokens`.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self._at_prompt = True
        self._ids: list[int] = []
        self._printed = 0

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (1, n) or n, then each step's token (1,).

        Raises:
            ValueError: tokens of several utterances.
        """
        if value.dim() > 1:
            if len(value) > 1:
                raise ValueError(f"{type(self).__name__} prints one utterance, got {len(value)}")
            value = value[0]
        if self._at_prompt and self.skip_prompt:
            self._at_prompt = False
            return
        self._at_prompt = False
        self._ids.extend(value.tolist())
        text = self.tokenizer.decode(self._ids, **self.decode_kwargs)
        if text.endswith("\n"):
            ready = text[self._printed :]
            self._ids, self._printed = [], 0
        else:
            end = len(text) if text and stands_alone(text[-1]) else text.rfind(" ") + 1
            ready = text[self._printed : end]
            self._printed = max(self._printed, end)
        self.on_finalized_text(ready)

    def end(self) -> None:
        """Print what is left."""
        text = self.tokenizer.decode(self._ids, **self.decode_kwargs) if self._ids else ""
        ready = text[self._printed :]
        self._at_prompt, self._ids, self._printed = True, [], 0
        self.on_finalized_text(ready, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called with each further piece of text, which may be empty; to be overridden."""
        print(text, flush=True, end="\n" if stream_end else "")


class TextIteratorStreamer(TextStreamer):
    """Gives the pieces of text to whoever iterates over it, while another thread decodes.

    Args:
        timeout: seconds to wait for a piece; then `queue.Empty` is raised. None: for ever.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self._pieces: Queue[str | None] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._pieces.put(text, timeout=self.timeout)
        if stream_end:
            self._pieces.put(None, timeout=self.timeout)

    def __iter__(self) -> "TextIteratorStreamer":
        return self

    def __next__(self) -> str:
        piece = self._pieces.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        return piece


_ALONE = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
"""Kana and Chinese characters; transformers leaves the kana out."""


def stands_alone(character: str) -> bool:
    """Whether a character is of a script that puts no spaces between words: Chinese characters and kana."""
    return any(first <= ord(character) <= last for first, last in _ALONE)

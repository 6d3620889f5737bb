"""`load_audio` under the name that transformers' examples import it by."""

from fastspeech.audio import load_audio

__all__ = ["load_audio"]

"""Sound in: media files, checks of samples, mel banks, splitting of long recordings."""

from fastspeech.audio.load import load_audio

__all__ = ["load_audio"]

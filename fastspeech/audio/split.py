"""Cutting long recordings at their quietest places, as CohereAsr was trained to hear them."""

import torch


def split_at_quiet(
    samples: torch.Tensor,
    sampling_rate: int = 16000,
    max_audio_clip_s: float = 35.0,
    overlap_chunk_second: float = 5.0,
    min_energy_window_samples: int = 1600,
) -> list[tuple[int | None, int, int]]:
    """Chunks (index, start, end) of float samples (n,), in order, without overlap or gap.

    A recording of at most `max_audio_clip_s - overlap_chunk_second` seconds is one chunk of index None; the others
    count from 0. Each chunk but the last ends in the last `overlap_chunk_second` seconds of the `max_audio_clip_s` it
    may take, where the first quietest of consecutive windows of `min_energy_window_samples` begins.

    The last whole window of a search is never tried: so does transformers, whose chunks these are.
    """
    total = len(samples)
    if total / sampling_rate <= max(0.0, max_audio_clip_s - overlap_chunk_second):
        return [(None, 0, total)]
    longest = max(1, round(max_audio_clip_s * sampling_rate))
    search = max(1, round(overlap_chunk_second * sampling_rate))
    chunks: list[tuple[int | None, int, int]] = []
    start = 0
    while start + longest < total:
        low, high = max(start, start + longest - search), start + longest
        end = max(start + 1, low + _quietest(samples[low:high], min_energy_window_samples))
        chunks.append((len(chunks), start, end))
        start = end
    chunks.append((len(chunks), start, total))
    return chunks


def _quietest(segment: torch.Tensor, window: int) -> int:
    """Offset of the first window of the least energy; the middle of a segment no longer than one window."""
    if len(segment) <= window:
        return len(segment) // 2
    count = -(-(len(segment) - window) // window)
    # The root of the mean, though its order is the square's: rounding makes ties, and the first of them counts.
    energy = segment[: count * window].reshape(count, window).square().mean(1).sqrt()
    return int(energy.argmin()) * window

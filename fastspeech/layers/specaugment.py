"""SpecAugment (Park et al. 2019): spans of time and of features set to zero in training."""

from typing import Any

import torch
from torch import Tensor


def mask_features(config: Any, features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """features (B, channels, T) with random spans of frames and of channels set to 0, in a copy.

    `config` says how many: `mask_time_prob`, the share of frames to mask, in spans of `mask_time_length`, at least
    `mask_time_min_masks` of them, and likewise `mask_feature_*` for channels. Fields it lacks mean no masking, and
    `apply_spec_augment=False` switches all of it off. Spans may overlap. attention_mask: (B, T), true at a row's
    frames, which come first: spans of frames begin within them.
    """
    if not getattr(config, "apply_spec_augment", True):
        return features
    rows, channels, frames = features.shape
    valid = [frames] * rows if attention_mask is None else attention_mask.sum(-1).tolist()
    for axis, what, size, lengths in ((1, "time", frames, valid), (2, "feature", channels, [channels] * rows)):
        share = getattr(config, f"mask_{what}_prob", 0.0)
        if share > 0:
            span = getattr(config, f"mask_{what}_length", 10)
            masked = span_mask(lengths, size, share, span, getattr(config, f"mask_{what}_min_masks", 0))
            features = features.masked_fill(masked.unsqueeze(axis).to(features.device), 0)
    return features


def span_mask(lengths: list[int], size: int, share: float, span: int, least: int) -> Tensor:
    """(len(lengths), size) bool, true within random spans.

    A row gets share * length / span spans, the fraction rounded up or down by one draw for all rows, at least `least`,
    and no more than fit or have a place to begin; their starts are distinct.

    Raises:
        ValueError: a span below 1 or longer than a row.
    """
    if not 1 <= span <= size:
        raise ValueError(f"a span of {span} does not fit in {size}")
    mask = torch.zeros(len(lengths), size, dtype=torch.bool)
    rounding = float(torch.rand(()))
    for row, length in zip(mask, lengths, strict=True):
        starts = max(length - span + 1, 0)
        count = min(max(int(share * length / span + rounding), least), size // span, starts)
        for start in torch.randperm(starts)[:count].tolist():
            row[start : start + span] = True
    return mask

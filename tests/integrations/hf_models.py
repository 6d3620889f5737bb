"""Random models of transformers of the four families, and what to give them."""

from typing import Any

import kyutai_pair
import moonshine_pair
import s2t_pair
import torch
import transformers
from tiny_kyutai import stir

CASES = {
    "cohere": "three heads",
    "cohere grouped": "grouped",
    "cohere tied": "tied",
    "moonshine": "three heads",
    "moonshine padded": "heads of 36",
    "s2t": "deep decoder",
    "s2t untied": "untied",
    "kyutai": "wide",
    "kyutai grouped": "grouped",
}
if hasattr(transformers, "CohereAsrConfig"):
    import cohere_pair
else:  # transformers 4, whose caches have as many layers as the encoder
    CASES = {"moonshine": "heads of 52", "s2t": "untied", "kyutai": "wide", "kyutai grouped": "grouped"}
FAMILIES = tuple(name for name in ("cohere", "moonshine", "s2t", "kyutai") if name in CASES)
LENGTHS = {"cohere": (67, 41, 30), "moonshine": (9000, 6000, 2000), "s2t": (67, 41, 30)}


def family(name: str) -> str:
    return name.split()[0]


def make(name: str, attention: str | None = None) -> Any:
    """A new model of transformers, in evaluation mode, with weights that make its output depend on its input."""
    case = CASES[name]
    if family(name) == "cohere":
        return cohere_pair.pair(case, attention or "sdpa")[0]
    if family(name) == "moonshine":
        moonshine_pair.pair.cache_clear()
        return moonshine_pair.pair(case, attention or "sdpa")[0]
    if family(name) == "s2t":
        return s2t_pair.pair(case)[0]
    torch.manual_seed(0)
    config, ours = kyutai_pair.configs(case)
    config.rope_theta = ours.rope_theta  # where transformers 4 reads it
    made = stir(transformers.KyutaiSpeechToTextForConditionalGeneration(config).eval())
    made.generation_config.audio_window_size = 1
    made.codec_model.generation_config.use_cache = True
    if attention:
        made.set_attn_implementation(attention)
    return made


def audio(name: str, model: Any, clips: int = 3) -> dict[str, torch.Tensor]:
    """What `generate` takes: clips of different lengths, padded."""
    if family(name) == "kyutai":
        return {"input_values": kyutai_pair.audio(clips, 9 * kyutai_pair.FRAME)}
    lengths = LENGTHS[family(name)][:clips]
    if family(name) == "moonshine":
        return moonshine_pair.audio(lengths)
    return _pair(name).audio(model, lengths)


def inputs(name: str, model: Any, clips: int = 3) -> dict[str, torch.Tensor]:
    """What `forward` takes: the audio and some tokens."""
    if family(name) == "kyutai":
        return {"input_ids": kyutai_pair.ids(clips, 7)}
    return audio(name, model, clips) | {"decoder_input_ids": _pair(name).tokens(clips, 6)}


def _pair(name: str) -> Any:
    return {"moonshine": moonshine_pair, "s2t": s2t_pair}.get(family(name)) or cohere_pair


def written(model: Any, **given: Any) -> torch.Tensor:
    """What `generate` writes, 12 tokens where nothing else is asked for."""
    torch.manual_seed(5)
    if "input_values" in given and given["input_values"].dim() == 3:
        given = {"max_new_tokens": 8} | given
    found = model.generate(**{"max_new_tokens": 12, "do_sample": False} | given)
    return found if isinstance(found, torch.Tensor) else found.sequences


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()

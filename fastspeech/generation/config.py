"""The parameters of `generate`: generation_config.json in and out."""

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from fastspeech.checkpoints.files import locate, read_json, write_json

GENERATION_CONFIG_FILE = "generation_config.json"


class GenerationConfig:
    """Parameters of `generate`, with transformers' names and meaning.

    A field left at None is not set: `generate` then takes the model's `generation_config`, then `DEFAULTS`. Fields
    nobody names here are kept as attributes and written out again.
    """

    max_length: int | None = None
    """Longest sequence, prompt included. With neither this nor max_new_tokens: 20 new tokens."""
    max_new_tokens: int | None = None
    """Most new tokens; goes before max_length."""
    min_length: int | None = None
    min_new_tokens: int | None = None
    max_time: float | None = None
    """Seconds after which no further token is begun."""
    stop_strings: str | list[str] | None = None

    do_sample: bool | None = None
    num_beams: int | None = None
    early_stopping: bool | str | None = None
    """When a beam search ends: True, as soon as num_beams hypotheses are finished; False, when no better one is
    likely; "never", when no better one is possible."""
    length_penalty: float | None = None
    """Beam scores are divided by length ** length_penalty; above 0 favours long ones, as log-probabilities are < 0."""
    use_cache: bool | None = None
    cache_implementation: str | None = None

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None

    repetition_penalty: float | None = None
    encoder_repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    encoder_no_repeat_ngram_size: int | None = None
    bad_words_ids: list[list[int]] | None = None
    sequence_bias: dict[tuple[int, ...], float] | list[list[Any]] | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | list[int] | None = None
    suppress_tokens: list[int] | None = None
    begin_suppress_tokens: list[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool | None = None
    renormalize_logits: bool | None = None
    guidance_scale: float | None = None
    watermarking_config: dict[str, Any] | None = None
    token_healing: bool | None = None

    num_return_sequences: int | None = None
    return_dict_in_generate: bool | None = None
    output_scores: bool | None = None
    output_logits: bool | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None

    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | list[int] | None = None

    num_assistant_tokens: int | None = None
    num_assistant_tokens_schedule: str | None = None
    assistant_confidence_threshold: float | None = None
    prompt_lookup_num_tokens: int | None = None

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "min_length": 0,
        "do_sample": False,
        "num_beams": 1,
        "early_stopping": False,
        "length_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "num_return_sequences": 1,
    }
    """What holds where neither the caller nor the model sets a field."""

    NEW_TOKENS: ClassVar[int] = 20
    """New tokens where no length is set anywhere."""

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            if name not in _NOT_KEPT:
                setattr(self, name, value)
        self.validate()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = "main",
        **overrides: Any,
    ) -> Self:
        """The parameters in generation_config.json of a folder or hub id; `overrides` replace its fields.

        Raises:
            CheckpointError: no readable generation_config.json.
        """
        folder = locate(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return cls.from_dict(read_json(folder, GENERATION_CONFIG_FILE), **overrides)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """The parameters in a dictionary such as `to_dict` gives; `overrides` replace its fields."""
        return cls(**{**values, **overrides})

    @classmethod
    def from_model_config(cls, config: Any) -> Self:
        """The parameters that an old config.json (or model configuration) holds among its own fields."""
        values = config if isinstance(config, Mapping) else config.to_dict()
        return cls(**{name: values[name] for name in FIELDS & values.keys() if values[name] is not None})

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: copy.deepcopy(value) for name, value in vars(self).items() if value is not None}

    def to_json_string(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self._for_json(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write generation_config.json into `save_directory`, which is made where it is missing."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder, GENERATION_CONFIG_FILE, self._for_json())

    def update(self, **values: Any) -> dict[str, Any]:
        """Set those fields that exist, and return the values that are of no field."""
        rest = {}
        for name, value in values.items():
            if name in FIELDS or name in vars(self):
                setattr(self, name, value)
            else:
                rest[name] = value
        self.validate()
        return rest

    def filled_from(self, other: "GenerationConfig") -> "GenerationConfig":
        """A copy with the fields that are not set here taken from `other`."""
        return type(self)(**other.to_dict() | self.to_dict())

    def validate(self) -> None:
        """Raise ValueError for a value, or values together, that `generate` cannot serve."""
        if self.early_stopping not in (None, True, False, "never"):
            raise ValueError(f"early_stopping must be True, False or 'never', got {self.early_stopping!r}")
        for name in ("max_length", "max_new_tokens", "num_beams", "num_return_sequences"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        beams, returned = self.num_beams or 1, self.num_return_sequences or 1
        if beams == 1 and returned > 1 and not self.do_sample:
            raise ValueError(f"num_return_sequences={returned} needs num_beams > 1 or do_sample=True")
        if 1 < beams < returned:
            raise ValueError(f"num_return_sequences={returned} must not exceed num_beams={beams}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.to_dict() == other.to_dict()  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def _for_json(self) -> dict[str, Any]:
        values = self.to_dict()
        if isinstance(self.sequence_bias, dict):
            # JSON has no tuples as keys; transformers reads the list form too.
            values["sequence_bias"] = [[list(tokens), bias] for tokens, bias in self.sequence_bias.items()]
        return values


FIELDS = frozenset(name for name in GenerationConfig.__annotations__ if name not in ("DEFAULTS", "NEW_TOKENS"))
"""The names of all parameters."""

_NOT_KEPT = frozenset({"transformers_version", "_from_model_config", "_commit_hash"})
"""Fields that say who wrote the file, which would be wrong in the next file."""

"""The right classes for a checkpoint, found by what it says it is."""

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from fastspeech.checkpoints.feature_base import FEATURES_FILE, PROCESSOR_FILE
from fastspeech.checkpoints.files import CONFIG_FILE, locate, read_json_if_any
from fastspeech.errors import CheckpointError


@dataclass(frozen=True)
class Family:
    """The classes of one model, by name, so that a model is imported only when a checkpoint asks for it.

    Attributes:
        module: where the classes are.
        config, model, generator, processor: their names; `generator` is the model with `generate`. The processor
            knows the classes of its feature extractor and its tokenizer.
        released_key: a field of config.json that only the model's original layout has, whatever model type that names.
    """

    module: str
    config: str
    model: str
    generator: str
    processor: str
    released_key: str | None = None

    def get(self, name: str) -> Any:
        """The class of that name."""
        return getattr(import_module(self.module), name)


FAMILIES = {
    "cohere_asr": Family(
        module="fastspeech.models.cohere_asr",
        config="CohereAsrConfig",
        model="CohereAsrModel",
        generator="CohereAsrForConditionalGeneration",
        processor="CohereAsrProcessor",
        released_key="transf_decoder",
    ),
    "kyutai_speech_to_text": Family(
        module="fastspeech.models.kyutai_stt",
        config="KyutaiSpeechToTextConfig",
        model="KyutaiSpeechToTextModel",
        generator="KyutaiSpeechToTextForConditionalGeneration",
        processor="KyutaiSpeechToTextProcessor",
        released_key="text_card",
    ),
    "moonshine": Family(
        module="fastspeech.models.moonshine",
        config="MoonshineConfig",
        model="MoonshineModel",
        generator="MoonshineForConditionalGeneration",
        processor="Wav2Vec2Processor",
    ),
    "speech_to_text": Family(
        module="fastspeech.models.speech_to_text",
        config="Speech2TextConfig",
        model="Speech2TextModel",
        generator="Speech2TextForConditionalGeneration",
        processor="Speech2TextProcessor",
    ),
}
"""Every model of the library by its `model_type`."""

_WHERE = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def family_of(name_or_path: str | os.PathLike[str], **where: Any) -> Family:
    """The family of a checkpoint: a folder or a hub id, with `locate`'s arguments.

    config.json decides; a folder that holds only a processor is known by the processor's class.

    Raises:
        CheckpointError: a model that the library does not have, or no settings at all.
    """
    folder = locate(name_or_path, **where)
    config = read_json_if_any(folder, CONFIG_FILE)
    for family in FAMILIES.values():
        if family.released_key in config:
            return family
    model_type = config.get("model_type")
    if model_type is not None:
        return family_of_type(model_type, folder / CONFIG_FILE)
    if not config:
        for file in (PROCESSOR_FILE, FEATURES_FILE):
            processor = read_json_if_any(folder, file).get("processor_class")
            for family in FAMILIES.values():
                if processor == family.processor:
                    return family
        raise CheckpointError(f"{folder} has no {CONFIG_FILE} and no processor of a known model")
    raise CheckpointError(f"{folder / CONFIG_FILE} names no model_type; known are {', '.join(FAMILIES)}")


def family_of_type(model_type: Any, source: Path | str) -> Family:
    """The family of that `model_type`, which `source` names.

    Raises:
        CheckpointError: a model that the library does not have.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise CheckpointError(f"{source}: unknown model_type {model_type!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


class _Auto:
    """What the Auto classes share."""

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} has no instances; use {type(self).__name__}.from_pretrained(...)")

    @classmethod
    def _choose(cls, family: Family) -> Any:
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        trust_remote_code: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the checkpoint in a folder or on the hub holds, by its own class's `from_pretrained(**kwargs)`.

        `trust_remote_code` permits what is never done: no code of a checkpoint is run, whatever it says.

        Raises:
            CheckpointError: a model that the library does not have, or whatever else is wrong in the checkpoint.
        """
        where = {name: kwargs[name] for name in _WHERE if name in kwargs}
        family = family_of(pretrained_model_name_or_path, **where)
        return cls._choose(family).from_pretrained(pretrained_model_name_or_path, **kwargs)


class _AutoModelBase(_Auto):
    @classmethod
    def from_config(cls, config: Any) -> Any:
        """A model of that configuration, not trained."""
        return cls._choose(family_of_type(config.model_type, type(config).__name__))(config)


class AutoConfig(_Auto):
    """The configuration of a checkpoint."""

    @classmethod
    def _choose(cls, family: Family) -> Any:
        return family.get(family.config)


class AutoModel(_AutoModelBase):
    """The model of a checkpoint, without a head."""

    @classmethod
    def _choose(cls, family: Family) -> Any:
        return family.get(family.model)


class AutoModelForSpeechSeq2Seq(_AutoModelBase):
    """The model of a checkpoint, with the head and `generate`."""

    @classmethod
    def _choose(cls, family: Family) -> Any:
        return family.get(family.generator)


class AutoProcessor(_Auto):
    """The processor of a checkpoint."""

    @classmethod
    def _choose(cls, family: Family) -> Any:
        return family.get(family.processor)


class AutoFeatureExtractor(_Auto):
    """The feature extractor of a checkpoint."""

    @classmethod
    def _choose(cls, family: Family) -> Any:
        return family.get(family.processor).feature_extractor_class


class AutoTokenizer(_Auto):
    """The tokenizer of a checkpoint."""

    @classmethod
    def _choose(cls, family: Family) -> Any:
        return family.get(family.processor).tokenizer_class

"""What processors share: an extractor and a tokenizer, saved and loaded together."""

import os
from pathlib import Path
from typing import Any, ClassVar, Self

from fastspeech.checkpoints.feature_base import FEATURES_FILE, PROCESSOR_FILE, FeatureExtractor
from fastspeech.checkpoints.files import write_json
from fastspeech.checkpoints.tokenizer import Tokenizer
from fastspeech.checkpoints.tokenizer_base import TokenizerBase


class ProcessorMixin:
    """A feature extractor and a tokenizer. The model's processor defines `__call__`.

    Attributes:
        feature_extractor_class: what `from_pretrained` builds the extractor with.
        tokenizer_class: what it loads the tokenizer with.
    """

    feature_extractor_class: ClassVar[type[FeatureExtractor]]
    tokenizer_class: ClassVar[type[TokenizerBase]] = Tokenizer

    def __init__(self, feature_extractor: FeatureExtractor, tokenizer: TokenizerBase) -> None:
        self.feature_extractor = feature_extractor
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> Self:
        """The processor of a folder or hub id, as transformers 4 or 5 saved it; `overrides` replace settings of the
        feature extractor.

        Raises:
            CheckpointError: the extractor's settings or the tokenizer are not there or not readable.
        """
        where: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
            "token": token,
        }
        extractor = cls.feature_extractor_class.from_pretrained(name_or_path, **where, **overrides)
        return cls(extractor, cls.tokenizer_class.from_pretrained(name_or_path, **where))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the extractor's and the tokenizer's files into `folder`, in the form transformers 4 and 5 both read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = {"processor_class": type(self).__name__}
        self.tokenizer.save_pretrained(folder)
        write_json(folder, FEATURES_FILE, self.feature_extractor.to_dict() | name)
        # also takes the place of one by transformers 5, whose "feature_extractor" would win over the file above
        write_json(folder, PROCESSOR_FILE, name)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """`Tokenizer.decode`."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """`Tokenizer.batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the items a call returns."""
        return [*self.feature_extractor.model_input_names, "labels"]

"""What processors share: an extractor and a tokenizer, saved and loaded together."""

import inspect
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

from fastspeech.checkpoints.feature_base import FEATURES_FILE, PROCESSOR_FILE, FeatureExtractor
from fastspeech.checkpoints.files import write_json
from fastspeech.checkpoints.hub import upload
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
        pretrained_model_name_or_path: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = "main",
        **overrides: Any,
    ) -> Self:
        """The processor of a folder or hub id, as transformers 4 or 5 saved it.

        Args:
            overrides: replace settings of the feature extractor and of the tokenizer, each taking those that it has;
                one that neither has is kept by the extractor.

        Raises:
            CheckpointError: the extractor's settings or the tokenizer are not there or not readable.
        """
        where: dict[str, Any] = {
            "revision": revision,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
        }
        of_tokenizer = {name: value for name, value in overrides.items() if name in cls.tokenizer_class.settings()}
        heard = inspect.signature(cls.feature_extractor_class).parameters
        of_extractor = {name: value for name, value in overrides.items() if name in heard or name not in of_tokenizer}
        return cls(
            cls.feature_extractor_class.from_pretrained(pretrained_model_name_or_path, **where, **of_extractor),
            cls.tokenizer_class.from_pretrained(pretrained_model_name_or_path, **where, **of_tokenizer),
        )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        legacy_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write the extractor's and the tokenizer's files into `save_directory`.

        Args:
            push_to_hub: also upload these files, and no others of that folder.
            legacy_serialization: put the extractor's settings into a file of their own, as transformers 4 and 5 both
                read them; False for processor_config.json, where transformers 5 puts them.
            **kwargs: of the upload: `repo_id`, by default the folder's name, and the arguments of
                `fastspeech.checkpoints.hub.upload`.

        Raises:
            TypeError: arguments of an upload without `push_to_hub`, or unknown ones.
        """
        if kwargs and not push_to_hub:
            raise TypeError(f"{', '.join(kwargs)}: only with push_to_hub=True")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        name = {"processor_class": type(self).__name__}
        settings = self.feature_extractor.to_dict()
        # of an earlier save, either file would win over the other in one of the two transformers
        if legacy_serialization:
            write_json(folder, FEATURES_FILE, settings | name)
            write_json(folder, PROCESSOR_FILE, name)
        else:
            write_json(folder, PROCESSOR_FILE, name | {"feature_extractor": settings})
            (folder / FEATURES_FILE).unlink(missing_ok=True)
        if push_to_hub:
            repo_id = kwargs.pop("repo_id", folder.absolute().name)
            with TemporaryDirectory() as draft:
                self.save_pretrained(draft, legacy_serialization=legacy_serialization)
                upload(Path(draft), repo_id, **kwargs)

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

"""What tokenizers share, whatever cuts their texts: special tokens, padding, and the forms of arguments."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch

from fastspeech.checkpoints.feature_base import BatchFeature
from fastspeech.checkpoints.files import locate

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


Text = str | Sequence[str]
"""A text, or the words of one."""


class TokenizerBase:
    """Text to ids and back. A subclass says how, in `_rows` and `_text`, and what its vocabulary is.

    The special tokens that have a role are read as `tokenizer.eos_token` and `tokenizer.eos_token_id` (and bos, unk,
    sep, pad, cls, mask); None where the tokenizer has none.

    Args:
        additional_special_tokens: special tokens without a role, such as "<|en|>"; transformers 5 calls them
            `extra_special_tokens`.
        model_max_length: length that `truncation=True` cuts to where no `max_length` is given.
        padding_side: "right" or "left".
        clean_up_tokenization_spaces: whether `decode` removes the space before punctuation.
        **roles: the special tokens with a role, `eos_token="</s>"`. Other settings are kept and written out again.
    """

    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(
        self,
        *,
        additional_special_tokens: Sequence[str] = (),
        extra_special_tokens: Sequence[str] = (),
        model_max_length: int | None = None,
        padding_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
        **roles: Any,
    ) -> None:
        if padding_side not in ("right", "left"):
            raise ValueError(f"padding_side must be 'right' or 'left', got {padding_side!r}")
        self.model_max_length = model_max_length
        self.padding_side = padding_side
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.additional_special_tokens = list(dict.fromkeys([*additional_special_tokens, *extra_special_tokens]))
        for role in ROLES:
            setattr(self, role, roles.pop(role, None))
        self._settings = roles

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
        """The tokenizer of a folder or hub id; `overrides` replace its settings and special tokens.

        Raises:
            CheckpointError: no readable vocabulary there.
        """
        folder = locate(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return cls.from_folder(folder, **overrides)

    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> Self:
        """As `from_pretrained`, for a folder at hand."""
        raise NotImplementedError

    @classmethod
    def settings(cls) -> set[str]:
        """The names of what the constructors take."""
        taken = (inspect.signature(kind).parameters for kind in (cls, TokenizerBase))
        return {*ROLES, *(name for names in taken for name in names)}

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the vocabulary and tokenizer_config.json into `save_directory`, as transformers 4 and 5 read them."""
        raise NotImplementedError

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        raise NotImplementedError

    def _rows(self, texts: list[Text], add_special_tokens: bool, limit: int | None) -> list[list[int]]:
        """The ids of texts, cut to `limit` with the special tokens included. All of them are split into words, or
        none."""
        raise NotImplementedError

    def _text(self, ids: list[int], skip_special_tokens: bool, clean_up: bool) -> str:
        """The text of ids."""
        raise NotImplementedError

    def _id_of(self, token: str) -> int | None:
        """The id of a token; None for what is no token."""
        raise NotImplementedError

    def _token_of(self, id_: int) -> str | None:
        """The token of an id; None for what is no id."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        role = name.removesuffix("_id")
        if role not in ROLES or role == name:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        token = getattr(self, role)
        return None if token is None else self._id_of(token)

    @property
    def extra_special_tokens(self) -> list[str]:
        """`additional_special_tokens` by the name that transformers 5 has for them."""
        return self.additional_special_tokens

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens with a role, by role."""
        return {role: token for role in ROLES if (token := getattr(self, role)) is not None}

    def saved_settings(self) -> dict[str, Any]:
        """What tokenizer_config.json says of the tokenizer, but for its class."""
        settings: dict[str, Any] = self._settings | self.special_tokens_map
        settings["additional_special_tokens"] = self.additional_special_tokens
        settings["clean_up_tokenization_spaces"] = self.clean_up_tokenization_spaces
        settings["padding_side"] = self.padding_side
        if self.model_max_length is not None:
            settings["model_max_length"] = self.model_max_length
        return settings

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens with a role, then the additional ones."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self.additional_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """Their ids."""
        return self.convert_tokens_to_ids(self.all_special_tokens)

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or a list of them; the unknown token's (None without one) for what is no token."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        found = self._id_of(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """The token of an id, or a list of them."""
        if isinstance(ids, int):
            return self._token_of(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._token_of(int(id_)) for id_ in ids if int(id_) not in skipped]

    def encode(self, text: str, add_special_tokens: bool = True, **kwargs: Any) -> list[int]:
        """The ids of one text."""
        return self(text, add_special_tokens=add_special_tokens, **kwargs)["input_ids"]

    def __call__(
        self,
        text: Text | Sequence[Text],
        *,
        add_special_tokens: bool = True,
        is_split_into_words: bool = False,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Ids and attention mask (1 for a token, 0 for padding) of one text or a list of them.

        Args:
            add_special_tokens: whether the tokenizer's template adds its own, such as a leading `<s>`.
            is_split_into_words: a text is a list of words, each of which is cut into tokens by itself.
            padding: True or "longest" to the longest text, "max_length" to `max_length`.
            truncation: cut to `max_length`.
            max_length: in tokens, the template's included; `model_max_length` where it is None.
            padding_side: in place of the tokenizer's.
            return_tensors: "pt" or "np" for int64 arrays (texts, tokens), None for lists.

        Raises:
            ValueError: padding without a pad token, a length asked for and not given, or words where texts are meant.
        """
        if padding not in (False, True, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding must be True, False, 'longest' or 'max_length', got {padding!r}")
        single = isinstance(text, str) or (is_split_into_words and isinstance(next(iter(text), ""), str))
        texts = cast(list[Text], [text] if single else list(text))
        if any(isinstance(text, str) == is_split_into_words for text in texts):
            raise ValueError("texts are strings, or with is_split_into_words=True lists of strings")
        limit = max_length if max_length is not None else self.model_max_length
        if truncation and limit is None:
            raise ValueError("truncation needs a max_length")
        rows = self._rows(texts, add_special_tokens, limit if truncation else None)
        masks = [[1] * len(row) for row in rows]
        if padding not in (False, "do_not_pad"):
            target = limit if padding == "max_length" else max(map(len, rows), default=0)
            if target is None:
                raise ValueError("padding='max_length' needs a max_length")
            if self.pad_token_id is None:
                raise ValueError("padding needs a pad_token, and the tokenizer has none")
            side = padding_side or self.padding_side
            rows = [_pad(row, target, self.pad_token_id, side) for row in rows]
            masks = [_pad(mask, target, 0, side) for mask in masks]
        data: dict[str, Any] = {"input_ids": rows, "attention_mask": masks}
        if single and return_tensors is None:
            data = {name: value[0] for name, value in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """The text of ids (an id, a list, a 1-D array or tensor), or the list of texts of a batch of them.

        Args:
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: in place of the tokenizer's.
        """
        ids = _to_lists(token_ids)
        if isinstance(ids, int):
            ids = [ids]
        if ids and isinstance(ids[0], list):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return self._text(ids, skip_special_tokens, clean_up_tokenization_spaces)

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The text of every row of ids."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]


_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""transformers' clean-up, in its order."""


def cleaned_up(text: str) -> str:
    """Text without the spaces before punctuation."""
    for loose, tight in _CLEAN_UP:
        text = text.replace(loose, tight)
    return text


def _pad(row: list[int], length: int, value: int, side: str) -> list[int]:
    filling = [value] * (length - len(row))
    return row + filling if side == "right" else filling + row


def _to_lists(ids: Any) -> Any:
    """Python ints and lists from tensors, arrays and sequences of them."""
    if isinstance(ids, (torch.Tensor, np.ndarray, np.integer)):
        return ids.tolist()
    return [_to_lists(id_) for id_ in ids] if isinstance(ids, Sequence) else ids


def token_text(token: Any) -> Any:
    """A token's text: settings hold it as a string or as the fields of an AddedToken."""
    return token.get("content") if isinstance(token, dict) else token


def plain_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments from what transformers 4 or 5 wrote into tokenizer_config.json."""
    settings = {name: token_text(value) if name in ROLES else value for name, value in settings.items()}
    # transformers 4 says additional_special_tokens, 5 extra_special_tokens
    extra = settings.pop("extra_special_tokens", None) or []
    tokens = settings.pop("additional_special_tokens", None) or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    settings["additional_special_tokens"] = list(dict.fromkeys(token_text(token) for token in [*tokens, *extra]))
    # transformers writes 1e30 for "no limit"
    limit = settings.get("model_max_length")
    settings["model_max_length"] = int(limit) if limit is not None and limit < 1e18 else None
    for name in ("tokenizer_class", "processor_class", "backend", "name_or_path", "tokenizer_file"):
        settings.pop(name, None)
    return settings

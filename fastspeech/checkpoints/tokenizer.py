"""Text to ids and back: the tokenizer.json of a checkpoint, run by the `tokenizers` library."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import tokenizers
import torch

from fastspeech.checkpoints.feature_base import BatchFeature
from fastspeech.checkpoints.files import blaming, inside, locate, read_json_if_any, replacing, write_json
from fastspeech.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A `tokenizers.Tokenizer` with the special tokens and settings that transformers keeps beside it.

    The special tokens that have a role are read as `tokenizer.eos_token` and `tokenizer.eos_token_id` (and bos, unk,
    sep, pad, cls, mask); None where the tokenizer has none. A special token the vocabulary lacks is appended to it.

    Args:
        backend: owned by this object from now on. Its own padding and truncation are switched off.
        additional_special_tokens: special tokens without a role, such as "<|en|>".
        model_max_length: length that `truncation=True` cuts to where no `max_length` is given.
        padding_side: "right" or "left".
        clean_up_tokenization_spaces: whether `decode` removes the space before punctuation. As in transformers 5, this
            never applies to a BPE vocabulary, whose spaces are the text's own.
        **roles: the special tokens with a role, `eos_token="</s>"`. Other settings are kept and written out again.
    """

    model_input_names: ClassVar[list[str]] = ["input_ids", "attention_mask"]

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        additional_special_tokens: Sequence[str] = (),
        model_max_length: int | None = None,
        padding_side: str = "right",
        clean_up_tokenization_spaces: bool = False,
        **roles: Any,
    ) -> None:
        if padding_side not in ("right", "left"):
            raise ValueError(f"padding_side must be 'right' or 'left', got {padding_side!r}")
        self.backend = backend
        self.model_max_length = model_max_length
        self.padding_side = padding_side
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        self.additional_special_tokens = list(additional_special_tokens)
        for role in ROLES:
            setattr(self, role, roles.pop(role, None))
        self._settings = roles
        backend.no_padding()
        backend.no_truncation()
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_special_tokens([token for token in self.all_special_tokens if token not in added])

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
        """The tokenizer of a folder or hub id; `overrides` replace its settings and special tokens.

        Raises:
            CheckpointError: no readable tokenizer.json there.
        """
        folder = locate(
            name_or_path, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
        )
        path = inside(folder, TOKENIZER_FILE)
        if not path.is_file():
            raise CheckpointError(f"{folder} has no {TOKENIZER_FILE}")
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise CheckpointError(f"{path} is not a tokenizer: {error}") from error
        settings = read_json_if_any(folder, SETTINGS_FILE)
        if "added_tokens_decoder" not in settings:
            settings |= read_json_if_any(folder, SPECIAL_TOKENS_FILE)
        with blaming(folder / SETTINGS_FILE):
            for id_, entry in sorted(settings.pop("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
                _add(backend, int(id_), entry)
            return cls(backend, **_plain(settings) | overrides)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json into `folder`, as transformers 4 and 5 read them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / TOKENIZER_FILE) as draft:
            draft.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        settings: dict[str, Any] = self._settings | self.special_tokens_map
        settings["additional_special_tokens"] = self.additional_special_tokens
        settings["clean_up_tokenization_spaces"] = self.clean_up_tokenization_spaces
        settings["padding_side"] = self.padding_side
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        if self.model_max_length is not None:
            settings["model_max_length"] = self.model_max_length
        write_json(folder, SETTINGS_FILE, settings)
        # one of an earlier save by transformers 4 would win over the settings just written
        (folder / SPECIAL_TOKENS_FILE).unlink(missing_ok=True)

    def __getattr__(self, name: str) -> Any:
        role = name.removesuffix("_id")
        if role not in ROLES or role == name:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        token = getattr(self, role)
        return None if token is None else self.backend.token_to_id(token)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """The special tokens with a role, by role."""
        return {role: token for role in ROLES if (token := getattr(self, role)) is not None}

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary without added tokens."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        """Size of the vocabulary with added tokens."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        return self.backend.get_vocab(with_added_tokens=True)

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
        found = self.backend.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    def convert_ids_to_tokens(self, ids: int | Sequence[int], skip_special_tokens: bool = False) -> Any:
        """The token of an id, or a list of them."""
        if isinstance(ids, int):
            return self.backend.id_to_token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.backend.id_to_token(int(id_)) for id_ in ids if int(id_) not in skipped]

    def encode(self, text: str, add_special_tokens: bool = True, **kwargs: Any) -> list[int]:
        """The ids of one text."""
        return self(text, add_special_tokens=add_special_tokens, **kwargs)["input_ids"]

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Ids and attention mask (1 for a token, 0 for padding) of one text or a list of them.

        Args:
            add_special_tokens: whether the tokenizer's template adds its own, such as a leading `<s>`.
            padding: True or "longest" to the longest text, "max_length" to `max_length`.
            truncation: cut to `max_length`.
            max_length: in tokens, the template's included; `model_max_length` where it is None.
            padding_side: in place of the tokenizer's.
            return_tensors: "pt" or "np" for int64 arrays (texts, tokens), None for lists.

        Raises:
            ValueError: padding without a pad token, or a length asked for and not given.
        """
        if padding not in (False, True, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding must be True, False, 'longest' or 'max_length', got {padding!r}")
        texts = [text] if isinstance(text, str) else list(text)
        limit = max_length if max_length is not None else self.model_max_length
        encodings = self.backend.encode_batch(texts, add_special_tokens=False)
        if truncation:
            if limit is None:
                raise ValueError("truncation needs a max_length")
            room = limit - (self.backend.num_special_tokens_to_add(False) if add_special_tokens else 0)
            for encoding in encodings:
                encoding.truncate(max(room, 0))
        rows = [self.backend.post_process(encoding, None, add_special_tokens).ids for encoding in encodings]
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
        if isinstance(text, str) and return_tensors is None:
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
        text = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        if clean_up_tokenization_spaces and not isinstance(self.backend.model, tokenizers.models.BPE):
            for loose, tight in _CLEAN_UP:
                text = text.replace(loose, tight)
        return text

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


def _pad(row: list[int], length: int, value: int, side: str) -> list[int]:
    filling = [value] * (length - len(row))
    return row + filling if side == "right" else filling + row


def _to_lists(ids: Any) -> Any:
    """Python ints and lists from tensors, arrays and sequences of them."""
    if isinstance(ids, (torch.Tensor, np.ndarray, np.integer)):
        return ids.tolist()
    return [_to_lists(id_) for id_ in ids] if isinstance(ids, Sequence) else ids


def _content(token: Any) -> Any:
    """A token's text: settings hold it as a string or as the fields of an AddedToken."""
    return token.get("content") if isinstance(token, dict) else token


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments from what transformers 4 or 5 wrote into tokenizer_config.json."""
    settings = {name: _content(value) if name in ROLES else value for name, value in settings.items()}
    # transformers 4 says additional_special_tokens, 5 extra_special_tokens
    extra = settings.pop("extra_special_tokens", None) or []
    tokens = settings.pop("additional_special_tokens", None) or []
    extra = list(extra.values()) if isinstance(extra, dict) else extra
    settings["additional_special_tokens"] = list(dict.fromkeys(_content(token) for token in [*tokens, *extra]))
    # transformers writes 1e30 for "no limit"
    limit = settings.get("model_max_length")
    settings["model_max_length"] = int(limit) if limit is not None and limit < 1e18 else None
    for name in ("tokenizer_class", "processor_class", "backend", "name_or_path", "tokenizer_file"):
        settings.pop(name, None)
    return settings


def _add(backend: tokenizers.Tokenizer, id_: int, entry: dict[str, Any]) -> None:
    """Add a token of `added_tokens_decoder`, which tokenizer.json holds already unless somebody edited the settings."""
    content = str(entry["content"])
    if backend.token_to_id(content) == id_ and id_ in backend.get_added_tokens_decoder():
        return
    fields = {name: bool(entry[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in entry}
    special = bool(entry.get("special", False))
    token = tokenizers.AddedToken(content, special=special, **fields)
    if special:
        backend.add_special_tokens([token])
    else:
        backend.add_tokens([token])
    if backend.token_to_id(content) != id_:
        raise ValueError(f"added_tokens_decoder gives {content!r} the id {id_}, which {TOKENIZER_FILE} does not allow")

"""Text to ids and back: the tokenizer.json of a checkpoint, run by the `tokenizers` library."""

import os
from pathlib import Path
from typing import Any, Self

import tokenizers

from fastspeech.checkpoints.files import blaming, inside, read_json_if_any, replacing, write_json
from fastspeech.checkpoints.tokenizer_base import Text, TokenizerBase, cleaned_up, plain_settings
from fastspeech.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"


class Tokenizer(TokenizerBase):
    """A `tokenizers.Tokenizer` with the special tokens and settings that transformers keeps beside it.

    A special token the vocabulary lacks is appended to it. As in transformers 5, `clean_up_tokenization_spaces` never
    applies to a BPE vocabulary, whose spaces are the text's own.

    Args:
        backend: owned by this object from now on. Its own padding and truncation are switched off.
        **settings: as `TokenizerBase` takes them.
    """

    def __init__(self, backend: tokenizers.Tokenizer, **settings: Any) -> None:
        super().__init__(**settings)
        self.backend = backend
        backend.no_padding()
        backend.no_truncation()
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_special_tokens([token for token in self.all_special_tokens if token not in added])

    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> Self:
        """As `from_pretrained`, for a folder at hand, which has a tokenizer.json."""
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
            return cls(backend, **plain_settings(settings) | overrides)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json into `save_directory`, as transformers 4 and 5 read them."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / TOKENIZER_FILE) as draft:
            draft.write_text(self.backend.to_str(pretty=True), encoding="utf-8")
        settings = self.saved_settings() | {"tokenizer_class": "PreTrainedTokenizerFast"}
        write_json(folder, SETTINGS_FILE, settings)
        # one of an earlier save by transformers 4 would win over the settings just written
        (folder / SPECIAL_TOKENS_FILE).unlink(missing_ok=True)

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

    def _rows(self, texts: list[Text], add_special_tokens: bool, limit: int | None) -> list[list[int]]:
        split = any(not isinstance(text, str) for text in texts)
        encodings = self.backend.encode_batch(texts, is_pretokenized=split, add_special_tokens=False)
        if limit is not None:
            room = limit - (self.backend.num_special_tokens_to_add(False) if add_special_tokens else 0)
            for encoding in encodings:
                encoding.truncate(max(room, 0))
        return [self.backend.post_process(encoding, None, add_special_tokens).ids for encoding in encodings]

    def _text(self, ids: list[int], skip_special_tokens: bool, clean_up: bool) -> str:
        text = self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
        spaced = isinstance(self.backend.model, tokenizers.models.BPE)
        return cleaned_up(text) if clean_up and not spaced else text

    def _id_of(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

    def _token_of(self, id_: int) -> str | None:
        return self.backend.id_to_token(id_)


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

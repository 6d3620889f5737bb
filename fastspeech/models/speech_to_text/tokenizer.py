"""Speech2Text's tokenizer: pieces by SentencePiece, ids by vocab.json, languages as special tokens."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import sentencepiece

from fastspeech.checkpoints.files import blaming, inside, read_json, read_json_if_any, replacing, write_json
from fastspeech.checkpoints.tokenizer import SETTINGS_FILE, SPECIAL_TOKENS_FILE
from fastspeech.checkpoints.tokenizer_base import Text, TokenizerBase, cleaned_up, plain_settings
from fastspeech.errors import CheckpointError

VOCAB_FILE = "vocab.json"
SPM_FILE = "sentencepiece.bpe.model"

LANGUAGES = {"mustc": ("pt", "fr", "ru", "nl", "ro", "it", "es", "de")}
"""Sets of target languages; "mustc" is that of the multilingual MuST-C model."""


class Speech2TextTokenizer(TokenizerBase):
    """Text to ids and back, for speech recognition and for translation into several languages.

    An encoded text ends with `eos_token`; where there are languages it begins with the token of `tgt_lang`, which can
    be set. Special tokens in a text are taken as such.

    Args:
        vocab_file: path of a JSON object from pieces to ids.
        spm_file: path of the SentencePiece model that cuts texts into pieces.
        do_upper_case: write decoded texts in capitals.
        do_lower_case: read texts in small letters. (transformers 5 takes this argument and ignores it.)
        tgt_lang: the language at first; by default the first.
        lang_codes: name of a set of languages, see `LANGUAGES`; None for none.
        additional_special_tokens: besides the languages' own.
        sp_model_kwargs: arguments of `sentencepiece.SentencePieceProcessor`, such as `enable_sampling`.
        **kwargs: as `TokenizerBase` takes them.

    Attributes:
        lang_code_to_id: the id of each language's token.

    Raises:
        CheckpointError: a file that cannot be read as what it should be.
        ValueError: an unknown set of languages, or a language that it lacks.
    """

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        spm_file: str | os.PathLike[str],
        bos_token: str = "<s>",
        eos_token: str = "</s>",
        pad_token: str = "<pad>",
        unk_token: str = "<unk>",
        do_upper_case: bool = False,
        do_lower_case: bool = False,
        tgt_lang: str | None = None,
        lang_codes: str | None = None,
        additional_special_tokens: Sequence[str] | None = None,
        sp_model_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if lang_codes is not None and lang_codes not in LANGUAGES:
            raise ValueError(f"unknown lang_codes {lang_codes!r}; known are {', '.join(LANGUAGES)}")
        languages = () if lang_codes is None else LANGUAGES[lang_codes]
        tokens = [f"<lang:{language}>" for language in languages]
        super().__init__(
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            unk_token=unk_token,
            additional_special_tokens=dict.fromkeys([*tokens, *(additional_special_tokens or ())]),  # type: ignore[arg-type]
            **kwargs,
        )
        self.do_upper_case = do_upper_case
        self.do_lower_case = do_lower_case
        self.lang_codes = lang_codes
        self.sp_model_kwargs = sp_model_kwargs or {}
        self.encoder = _vocabulary(Path(vocab_file))
        self._spm = _model_bytes(Path(spm_file))
        self.sp_model = _loaded(self._spm, Path(spm_file), self.sp_model_kwargs)
        for token in self.all_special_tokens:
            self.encoder.setdefault(token, len(self.encoder))
        self.decoder = {id_: token for token, id_ in self.encoder.items()}
        self._special = re.compile("|".join(map(re.escape, sorted(self.all_special_tokens, key=len, reverse=True))))
        self.lang_code_to_id = {
            language: self.sp_model.piece_to_id(token) for language, token in zip(languages, tokens, strict=True)
        }
        self.prefix_tokens: list[int] = []
        self._tgt_lang: str | None = None
        if languages:
            self.tgt_lang = tgt_lang if tgt_lang is not None else languages[0]

    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> Self:
        """As `from_pretrained`, for a folder at hand, with vocab.json and sentencepiece.bpe.model."""
        settings = read_json_if_any(folder, SETTINGS_FILE)
        settings = read_json_if_any(folder, SPECIAL_TOKENS_FILE) | settings
        # Its tokens are the special ones again, by id.
        settings.pop("added_tokens_decoder", None)
        files = {"vocab_file": inside(folder, VOCAB_FILE), "spm_file": inside(folder, SPM_FILE)}
        with blaming(folder / SETTINGS_FILE):
            return cls(**plain_settings(settings) | files | overrides)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the vocabulary and tokenizer_config.json into `save_directory`, as transformers 4 and 5 read them."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_vocabulary(folder)
        settings = self.saved_settings() | {
            "do_lower_case": self.do_lower_case,
            "do_upper_case": self.do_upper_case,
            "lang_codes": self.lang_codes,
            "tgt_lang": self.tgt_lang,
            "sp_model_kwargs": self.sp_model_kwargs,
            "tokenizer_class": "Speech2TextTokenizer",
        }
        write_json(folder, SETTINGS_FILE, settings)
        # one of an earlier save by transformers 4 would add to the settings just written
        (folder / SPECIAL_TOKENS_FILE).unlink(missing_ok=True)

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, str]:
        """Write vocab.json and sentencepiece.bpe.model, "<filename_prefix>-" before their names, and return the paths.

        Raises:
            ValueError: no such folder.
        """
        folder, prefix = Path(save_directory), f"{filename_prefix}-" if filename_prefix else ""
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder")
        vocabulary, model = folder / (prefix + VOCAB_FILE), folder / (prefix + SPM_FILE)
        with replacing(vocabulary) as draft:
            draft.write_text(json.dumps(self.encoder, indent=2, ensure_ascii=False), encoding="utf-8")
        with replacing(model) as draft:
            draft.write_bytes(self._spm)
        return str(vocabulary), str(model)

    @property
    def tgt_lang(self) -> str | None:
        """The target language, whose token begins every encoded text; None where there are none. It can be set.

        Raises:
            ValueError: setting a language that is not among those of `lang_codes`.
        """
        return self._tgt_lang

    @tgt_lang.setter
    def tgt_lang(self, new_tgt_lang: str) -> None:
        if new_tgt_lang not in self.lang_code_to_id:
            known = ", ".join(self.lang_code_to_id) or "none, as lang_codes is not set"
            raise ValueError(f"unknown target language {new_tgt_lang!r}; known are {known}")
        self._tgt_lang = new_tgt_lang
        self.prefix_tokens = [self.lang_code_to_id[new_tgt_lang]]

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary."""
        return len(self.encoder)

    def __len__(self) -> int:
        """Size of the vocabulary."""
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.encoder)

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, and its special tokens."""
        tokens: list[str] = []
        end = 0
        for match in self._special.finditer(text):
            tokens += self._pieces(text[end : match.start()])
            tokens.append(match.group())
            end = match.end()
        return tokens + self._pieces(text[end:])

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """The text of pieces and special tokens; a special token is written out with a space behind it."""
        special = set(self.all_special_tokens)
        text = ""
        pieces: list[str] = []
        for token in tokens:
            if token in special:
                text += self._joined(pieces) + token + " "
                pieces = []
            else:
                pieces.append(token)
        return (text + self._joined(pieces)).strip()

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids of a text, or of two as one, between the prefix and the end token."""
        return [*self.prefix_tokens, *token_ids_0, *(token_ids_1 or ()), self.eos_token_id]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 at special tokens and 0 at others, of what `build_inputs_with_special_tokens` makes of these ids, or with
        `already_has_special_tokens` of the ids themselves.

        Raises:
            ValueError: two texts that already have their special tokens.
        """
        if already_has_special_tokens:
            if token_ids_1 is not None:
                raise ValueError("ids that already have their special tokens are given as one list")
            special = set(self.all_special_ids)
            return [int(id_ in special) for id_ in token_ids_0]
        count = len(token_ids_0) + len(token_ids_1 or ())
        return [1] * len(self.prefix_tokens) + [0] * count + [1]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """0 for each token of the first text, the special ones of both included, and 1 for each of the second."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0)) + [1] * len(token_ids_1 or ())

    def _rows(self, texts: list[Text], add_special_tokens: bool, limit: int | None) -> list[list[int]]:
        split = ([text] if isinstance(text, str) else text for text in texts)
        rows = [self.convert_tokens_to_ids([t for word in words for t in self.tokenize(word)]) for words in split]
        if limit is not None:
            room = limit - (len(self.prefix_tokens) + 1 if add_special_tokens else 0)
            rows = [row[: max(room, 0)] for row in rows]
        return [self.build_inputs_with_special_tokens(row) for row in rows] if add_special_tokens else rows

    def _text(self, ids: list[int], skip_special_tokens: bool, clean_up: bool) -> str:
        text = self.convert_tokens_to_string(self.convert_ids_to_tokens(ids, skip_special_tokens))
        return cleaned_up(text) if clean_up else text

    def _id_of(self, token: str) -> int | None:
        return self.encoder.get(token)

    def _token_of(self, id_: int) -> str:
        return self.decoder.get(id_, self.unk_token)  # type: ignore[attr-defined]

    def _pieces(self, text: str) -> list[str]:
        return self.sp_model.encode(text.lower() if self.do_lower_case else text, out_type=str) if text else []

    def _joined(self, pieces: list[str]) -> str:
        text = self.sp_model.decode(pieces)
        return text.upper() if self.do_upper_case else text


def _vocabulary(path: Path) -> dict[str, int]:
    vocabulary = read_json(path.parent, path.name)
    if not all(isinstance(id_, int) for id_ in vocabulary.values()):
        raise CheckpointError(f"{path} does not give every piece an id")
    return vocabulary


def _model_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _loaded(model: bytes, path: Path, options: dict[str, Any]) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model, **options)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a SentencePiece model: {error}") from error

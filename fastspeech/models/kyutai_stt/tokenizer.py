"""Kyutai STT's vocabulary: transformers' tokenizer.json, or the SentencePiece file of the original repositories."""

from pathlib import Path
from typing import Any, Self

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers

from fastspeech.checkpoints.files import CONFIG_FILE, blaming, inside, read_json_if_any
from fastspeech.checkpoints.tokenizer import TOKENIZER_FILE, Tokenizer
from fastspeech.errors import CheckpointError

_VOCABULARIES = "tokenizer*.model"
_ROLES = ("unk_token", "bos_token", "eos_token", "pad_token")
"""Those of the first ids. The model writes `<unk>` in front of each word and `<pad>` where it writes nothing."""


class KyutaiSpeechToTextTokenizer(Tokenizer):
    """A `Tokenizer` that is made of a SentencePiece file where the checkpoint has no tokenizer.json."""

    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> Self:
        """As `from_pretrained`, for a folder at hand."""
        if inside(folder, TOKENIZER_FILE).is_file():
            return super().from_folder(folder, **overrides)
        path = _vocabulary(folder)
        with blaming(path):
            backend, roles = _read(path)
            return cls(backend, **roles | overrides)


def _vocabulary(folder: Path) -> Path:
    name = read_json_if_any(folder, CONFIG_FILE).get("tokenizer_name")
    found = [inside(folder, name)] if isinstance(name, str) else sorted(folder.glob(_VOCABULARIES))
    if len(found) != 1 or not found[0].is_file():
        raise CheckpointError(f"{folder} has no {TOKENIZER_FILE}, and not one vocabulary {name or _VOCABULARIES}")
    return inside(folder, found[0].name)


def _read(path: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The tokenizer of a SentencePiece file, whose pieces are taken for a unigram model's, and its special tokens."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    places = range(model.get_piece_size())
    pieces = [(model.id_to_piece(place), model.get_score(place)) for place in places]
    in_bytes = any(model.is_byte(place) for place in places)
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=model.unk_id(), byte_fallback=in_bytes))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend, {role: pieces[place][0] for place, role in enumerate(_ROLES)}

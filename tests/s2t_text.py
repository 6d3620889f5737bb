"""Small SentencePiece vocabularies, made once a session, with what is beside them in a checkpoint."""

import io
import json
from functools import cache
from pathlib import Path

import sentencepiece

LANGUAGES = ("pt", "fr", "ru", "nl", "ro", "it", "es", "de")

TEXTS = [
    "hello world",
    "MISTER Quilter",
    "  two  spaces, and a stop. ",
    "déjà vu ☃ unknown",
    "a </s> b<pad>c",
    "<lang:fr>bonjour",
    "",
]

_SENTENCES = """mister quilter is the apostle of the middle classes and we are glad to welcome his gospel
nor is mister quilter's manner less interesting than his matter
he tells us that at this festive season of the year with christmas and roast beef looming before us
hello world this is a small text, of which a small vocabulary is made.
Upper Case Letters Are Here As Well: ABCDEFGHIJKLMNOPQRSTUVWXYZ"""


@cache
def _model() -> bytes:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES.splitlines()),
        model_writer=written,
        vocab_size=110,
        model_type="unigram",
        user_defined_symbols=[f"<lang:{language}>" for language in LANGUAGES],
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return written.getvalue()


def save_vocabulary(folder: Path) -> dict[str, Path]:
    """Write vocab.json and sentencepiece.bpe.model; their paths by the tokenizers' argument names."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"vocab_file": folder / "vocab.json", "spm_file": folder / "sentencepiece.bpe.model"}
    model = sentencepiece.SentencePieceProcessor(model_proto=_model())
    # Two ids change places, so that pieces go through vocab.json.
    ids = {model.id_to_piece(id_): id_ for id_ in range(model.get_piece_size())}
    last = model.id_to_piece(108), model.id_to_piece(109)
    ids[last[0]], ids[last[1]] = 109, 108
    files["vocab_file"].write_text(json.dumps(ids), encoding="utf-8")
    files["spm_file"].write_bytes(_model())
    return files

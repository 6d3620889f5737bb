"""A small tokenizer as speech models have them: BPE pieces with a space mark, bytes for the rest, `<|...|>` tokens."""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, processors, trainers

ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
EXTRA = ["<|startoftranscript|>", "<|en|>", "<|pnc|>"]
TEXTS = [
    "And so my fellow Americans: ask not what your country can do for you.",
    "  Two  spaces , n't 's loose ' punctuation ! ",
    "Ein Käfer im Schnee",
    "¿Cómo? 日本語 🙂",
    "",
    "<|en|> and <s> inside",
]


def build(kind: str = "bpe") -> tokenizers.Tokenizer:
    """A tokenizer trained on `TEXTS`, of the kind "bpe", "metaspace" (a Metaspace decoder) or "unigram"."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    if kind == "unigram":
        letters = sorted(set("".join(TEXTS[:3])) - {" "})
        scored = [(piece, -10.0) for piece in pieces] + [(letter, -5.0) for letter in letters]
        scored += [("▁and", -1.0), ("▁.", -2.0), ("▁,", -2.0), ("▁n't", -2.0), ("▁'s", -2.0), ("▁!", -2.0)]
        backend = tokenizers.Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
    else:
        trained = tokenizers.Tokenizer(models.BPE())
        trained.train_from_iterator(
            [text.replace(" ", "▁") for text in TEXTS[:3]],
            trainers.BpeTrainer(vocab_size=120, special_tokens=[], show_progress=False),
        )
        model = json.loads(trained.to_str())["model"]
        vocabulary = dict.fromkeys([*pieces, *model["vocab"]])
        backend = tokenizers.Tokenizer(
            models.BPE(
                vocab={piece: number for number, piece in enumerate(vocabulary)},
                merges=[tuple(merge) for merge in model["merges"]],
                unk_token="<unk>",
                byte_fallback=True,
                fuse_unk=True,
            )
        )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    space = decoders.Metaspace() if kind == "metaspace" else decoders.Replace("▁", " ")
    strip = [] if kind == "metaspace" else [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence([space, decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return backend


def save_as_transformers_4(folder: Path, kind: str, clean_up: bool) -> None:
    """The files that transformers 4 writes for a PreTrainedTokenizerFast."""
    backend = build(kind)
    backend.add_special_tokens([*ROLES.values(), *EXTRA])
    backend.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {
        str(number): {"content": token.content, **flags, "special": True}
        for number, token in backend.get_added_tokens_decoder().items()
    }
    settings: dict[str, Any] = {
        "added_tokens_decoder": added,
        "additional_special_tokens": EXTRA,
        "clean_up_tokenization_spaces": clean_up,
        "extra_special_tokens": {},
        "model_max_length": 1000000000000000019884624838656,
        "processor_class": "Wav2Vec2Processor",
        "tokenizer_class": "PreTrainedTokenizerFast",
        **ROLES,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    roles = {role: {"content": token, **flags} for role, token in ROLES.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles | {"additional_special_tokens": EXTRA}))

"""Writes tests/saved_by_456: small checkpoints as transformers 4.56.2 saves them, and what it computes with them.

    python -m venv /tmp/venv456 && /tmp/venv456/bin/pip install transformers==4.56.2 torch==2.13.0 sentencepiece
    /tmp/venv456/bin/python tests/make_456.py

Needs nothing of this library. What it also writes down are the faults of that version which later ones do not have.
"""

import io
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedTokenizerFast,
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Speech2TextProcessor,
    Speech2TextTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

ROOT = Path(__file__).with_name("saved_by_456")
RATE = 16000
LABELS = torch.tensor([[5, 9, 14, 2], [7, 7, 2, -100]])
SENTENCES = """mister quilter is the apostle of the middle classes and we are glad to welcome his gospel
nor is mister quilter's manner less interesting than his matter
he tells us that at this festive season of the year with christmas and roast beef looming before us"""
LANGUAGES = ("pt", "fr", "ru", "nl", "ro", "it", "es", "de")

MOONSHINE: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 20,
    "encoder_num_hidden_layers": 2,
    "decoder_num_hidden_layers": 2,
    "encoder_num_attention_heads": 2,
    "decoder_num_attention_heads": 2,
    "partial_rotary_factor": 0.62,
    "rope_theta": 500.0,
    "pad_head_dim_to_multiple_of": 8,
    "pad_token_id": 2,
}
SPEECH_TO_TEXT: dict[str, Any] = {
    "vocab_size": 60,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 12,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "conv_channels": 8,
    "max_source_positions": 200,
    "max_target_positions": 50,
}


def clips() -> list[np.ndarray]:
    noise = np.random.default_rng(456)
    return [(0.1 * noise.standard_normal(count)).astype(np.float32) for count in (8000, 5300)]


def enlarged(model: Any) -> Any:
    """Weights larger than a fresh model's, so that what is written depends on what is heard."""
    torch.manual_seed(456)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(0.0, 0.2 if parameter.dim() == 1 else 0.4)
    return model.eval()


def fault(call: Callable[[], Any]) -> str | None:
    """The name of the error that a call ends in."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return None


def moonshine() -> None:
    folder = ROOT / "moonshine"
    model = enlarged(MoonshineForConditionalGeneration(MoonshineConfig(**MOONSHINE)))
    model.generation_config.max_length = 24
    letters = [f"<0x{byte:02X}>" for byte in range(65, 95)]
    pieces = ["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz", *letters]
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, merges=[], unk_token="<unk>")
    )
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True), tokenizer)
    processor.save_pretrained(folder)
    model.save_pretrained(folder)

    inputs = processor(clips(), sampling_rate=RATE, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, labels=LABELS)
        greedy = model.generate(**inputs)
        beams = model.generate(**inputs, num_beams=3)
    save_file({"logits": output.logits}, folder / "expected.safetensors")
    later = MOONSHINE | {"model_type": "moonshine", "rope_parameters": {"partial_rotary_factor": 0.62}}
    del later["partial_rotary_factor"]
    odd = {
        "grouped heads": {"decoder_num_key_value_heads": 1},
        "unequal heads": {"decoder_num_attention_heads": 4},
        "a decoder deeper than the encoder": {"decoder_num_hidden_layers": 3},
    }
    said = {
        "greedy": greedy.tolist(),
        "beams": beams.tolist(),
        "texts": processor.batch_decode(greedy, skip_special_tokens=True),
        "ids": tokenizer("a word", return_tensors=None)["input_ids"],
        "loss": output.loss.item(),
        "faults": {name: fault(partial(heard, MOONSHINE | settings)) for name, settings in odd.items()}
        | {"freeze_encoder": fault(model.model.freeze_encoder)},
        "rotary factor in a config of transformers 5": MoonshineConfig.from_dict(later).partial_rotary_factor,
    }
    (folder / "expected.json").write_text(json.dumps(said, indent=1) + "\n")


def heard(settings: dict[str, Any]) -> None:
    model: Any = MoonshineForConditionalGeneration(MoonshineConfig(**settings))
    model.generate(torch.zeros(1, 2000), max_new_tokens=2)


def speech_to_text() -> None:
    folder = ROOT / "speech_to_text"
    settings = {"num_beams": 5, "max_length": 18, "early_stopping": True}
    model = enlarged(Speech2TextForConditionalGeneration(Speech2TextConfig(**SPEECH_TO_TEXT)))
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES.splitlines()),
        model_writer=written,
        vocab_size=60,
        model_type="unigram",
        user_defined_symbols=[f"<lang:{language}>" for language in LANGUAGES],
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
        normalization_rule_name="identity",  # the others' tables are of 240 KB
    )
    spm = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    vocabulary = {spm.id_to_piece(id_): id_ for id_ in range(spm.get_piece_size())}
    with tempfile.TemporaryDirectory() as draft:
        files: dict[str, Any] = {"vocab_file": f"{draft}/vocab.json", "spm_file": f"{draft}/sentencepiece.bpe.model"}
        Path(files["vocab_file"]).write_text(json.dumps(vocabulary))
        Path(files["spm_file"]).write_bytes(written.getvalue())
        tokenizer = Speech2TextTokenizer(**files, lang_codes="mustc", tgt_lang="fr", do_lower_case=True)
        processor = Speech2TextProcessor(Speech2TextFeatureExtractor(), tokenizer)
        processor.save_pretrained(folder)
        one_language = Speech2TextTokenizer(**files)
    model.save_pretrained(folder, safe_serialization=False)

    inputs = processor(clips(), sampling_rate=RATE, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, labels=LABELS.masked_fill(LABELS == 2, 4))
        greedy = model.generate(**inputs, num_beams=1)
        beams = model.generate(**inputs)
        french = model.generate(**inputs, forced_bos_token_id=tokenizer.lang_code_to_id["fr"])
    save_file({"logits": output.logits, "input_features": inputs["input_features"]}, folder / "expected.safetensors")
    deep: Any = Speech2TextForConditionalGeneration(Speech2TextConfig(**SPEECH_TO_TEXT | {"decoder_layers": 3}))
    said = {
        "greedy": greedy.tolist(),
        "beams": beams.tolist(),
        "french": french.tolist(),
        "texts": processor.batch_decode(beams, skip_special_tokens=True),
        "ids": tokenizer("MISTER Quilter")["input_ids"],
        "loss": output.loss.item(),
        "faults": {
            "a decoder deeper than the encoder": fault(lambda: deep.generate(**inputs)),
            "tgt_lang without lang_codes": fault(lambda: one_language.tgt_lang),
        },
    }
    (folder / "expected.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    assert transformers.__version__ == "4.56.2", transformers.__version__
    moonshine()
    speech_to_text()

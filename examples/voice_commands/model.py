"""The demo's shape: a small CohereAsr, its processor, and the CTC head that helps it learn."""

import copy
import math
from pathlib import Path

import tokenizers
import torch
from torch import Tensor, nn

from fastspeech import (
    CohereAsrConfig,
    CohereAsrFeatureExtractor,
    CohereAsrForConditionalGeneration,
    CohereAsrProcessor,
    Tokenizer,
)

from .clips import WORDS

LANGUAGES = ("ar", "de", "el", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "vi", "zh")
CONTROL = (
    "<unk>", "<pad>", "<|endoftext|>", "<|startoftext|>", "▁", "<|startofcontext|>", "<|startoftranscript|>",
    "<|emo:undefined|>", *(f"<|{code}|>" for code in LANGUAGES), "<|pnc|>", "<|nopnc|>", "<|noitn|>", "<|notimestamp|>",
    "<|nodiarize|>",
)  # fmt: skip
TOKENS = {token: index for index, token in enumerate((*CONTROL, *WORDS))}
PAD, EOS, BOS, START = (TOKENS[t] for t in ("<pad>", "<|endoftext|>", "<|startoftext|>", "▁"))
MELS = 80


def write_processor(folder: Path) -> CohereAsrProcessor:
    """The processor, saved in `folder`: its tokenizer has one token a word and the control tokens of the prompt."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(TOKENS, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(list(CONTROL))
    tokenizer = Tokenizer(
        backend, unk_token="<unk>", pad_token="<pad>", eos_token="<|endoftext|>", bos_token="<|startoftext|>",
        model_max_length=128,
    )  # fmt: skip
    processor = CohereAsrProcessor(feature_extractor(), tokenizer)
    processor.save_pretrained(folder)
    return processor


def save(model: CohereAsrForConditionalGeneration, folder: Path) -> None:
    """The checkpoint in half precision, half the size; it is to be computed in single precision, says its config."""
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder)
    half.config.dtype = torch.float32
    half.config.save_pretrained(folder)


def prompt(punctuation: bool) -> list[int]:
    """The ten tokens that the processor puts before an English transcript."""
    names = ("▁", "<|startofcontext|>", "<|startoftranscript|>", "<|emo:undefined|>", "<|en|>", "<|en|>",
             "<|pnc|>" if punctuation else "<|nopnc|>", "<|noitn|>", "<|notimestamp|>", "<|nodiarize|>")  # fmt: skip
    return [TOKENS[name] for name in names]


def feature_extractor() -> CohereAsrFeatureExtractor:
    """80 mel bins; a recording longer than 10 s is split at quiet places into pieces as long as those trained on."""
    return CohereAsrFeatureExtractor(feature_size=MELS, max_audio_clip_s=10.0, overlap_chunk_second=3.0)


def build_model() -> CohereAsrForConditionalGeneration:
    """1.3 million parameters: five Conformer layers of 96 on frames of 80 ms, and one decoder layer."""
    width, heads = 96, 4
    encoder = {
        "hidden_size": width, "num_hidden_layers": 5, "num_attention_heads": heads, "intermediate_size": 4 * width,
        "subsampling_factor": 8, "subsampling_conv_channels": 32, "num_mel_bins": MELS, "dropout": 0.1,
        "activation_dropout": 0.1,
    }  # fmt: skip
    config = CohereAsrConfig(
        encoder_config=encoder, vocab_size=len(TOKENS), hidden_size=width, num_hidden_layers=1,
        num_attention_heads=heads, intermediate_size=2 * width, max_position_embeddings=128, pad_token_id=PAD,
        eos_token_id=EOS, bos_token_id=BOS, decoder_start_token_id=START,
    )  # fmt: skip
    model = CohereAsrForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 64
    initialise(model)
    return model


def initialise(model: CohereAsrForConditionalGeneration) -> None:
    """PyTorch's defaults, but that the embeddings are smaller, and that the positions are the fixed sinusoids of the
    released CohereAsr, so that a place never trained on is not noise."""
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    decoder = model.get_decoder()
    nn.init.normal_(decoder.embed_tokens.weight, std=decoder.embed_tokens.embedding_dim**-0.5)
    decoder.pos_emb.weight.requires_grad_(False).copy_(sinusoids(*decoder.pos_emb.weight.shape))


def sinusoids(positions: int, width: int) -> Tensor:
    """(positions, width): sine and cosine interleaved, over sqrt(width), as the released CohereAsr's `pos_enc`."""
    angle = torch.arange(positions)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack((angle.sin(), angle.cos()), -1).reshape(positions, width) / math.sqrt(width)


class CtcHead(nn.Module):
    """Word-level CTC on the encoder's output: helps the encoder to align, thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(WORDS) + 1)

    def forward(self, encoded: Tensor, frames: Tensor, words: list[list[int]]) -> Tensor:
        """Mean loss; `encoded` (B, T, width), `frames` (B,) valid lengths, `words` token ids, the blank is class 0."""
        log_probs = self.linear(encoded).log_softmax(-1).transpose(0, 1)
        targets = torch.tensor([w - len(CONTROL) + 1 for row in words for w in row], dtype=torch.long)
        counts = torch.tensor([len(row) for row in words])
        loss = nn.functional.ctc_loss(log_probs, targets, frames, counts, blank=0, reduction="none", zero_infinity=True)
        return (loss / counts.clamp(min=1)).mean()

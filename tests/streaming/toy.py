"""A stand-in for a Kyutai model: everything it says depends on every sample its row heard since its reset."""

from types import SimpleNamespace

import tokenizers
import torch
from torch import Tensor

from fastspeech import Tokenizer

FRAME, RATE, CODEBOOKS = 1920, 24000, 4
PIECES = ["<unk>", "<s>", "</s>", "<pad>", *(f"{space}{a}{b}" for space in ("▁", "") for a in "bdfgk" for b in "aeiou")]


def processor(delay: float = 0.5, prefix: float = 0.0) -> SimpleNamespace:
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<unk>")
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 1, 0)]
    )
    extractor = SimpleNamespace(sampling_rate=RATE, audio_delay_seconds=delay, audio_silence_prefix_seconds=prefix)
    return SimpleNamespace(feature_extractor=extractor, tokenizer=Tokenizer(backend, unk_token="<unk>"))


class State:
    def __init__(self, slots: int) -> None:
        self.codec = self
        self.heard = torch.zeros(slots, 8, dtype=torch.float64)
        self.said = torch.zeros(slots, 8, dtype=torch.float64)

    def reset(self, rows: Tensor) -> None:
        self.heard[rows] = 0.0
        self.said[rows] = 0.0


class Toy:
    """No matrix products: each row is the same bit for bit whatever is beside it."""

    def __init__(self, heads: int = 0) -> None:
        torch.manual_seed(0)
        vocabulary = len(PIECES) + 1
        self.config = SimpleNamespace(
            model_type="kyutai_speech_to_text",
            vocab_size=vocabulary,
            num_codebooks=CODEBOOKS,
            audio_bos_token_id=16,
            bos_token_id=vocabulary + 5,
            frame_size=FRAME,
            codec_config=SimpleNamespace(sampling_rate=RATE),
        )
        self.device = torch.device("cpu")
        self.codec_model = self
        self.ear = torch.randn(8, FRAME, dtype=torch.float64)
        self.mouth = torch.randn(vocabulary, 8, dtype=torch.float64)
        self.mouth[3] *= 3  # much padding
        self.heads = heads
        self.batches: list[int] = []

    def eval(self) -> "Toy":
        return self

    def start(self, slots: int) -> State:
        return State(slots)

    def encode_frames(self, samples: Tensor, state: State, slots: Tensor) -> Tensor:
        state.heard[slots] = torch.sin(state.heard[slots] * 1.7 + (self.ear * samples.double()).sum(-1) + 0.1)
        return (state.heard[slots, :CODEBOOKS, None] * 8 + 8).floor().long()

    def step(self, tokens: Tensor, codes: Tensor, state: State, slots: Tensor) -> Tensor:
        self.batches.append(len(tokens))
        before = state.said[slots] * 1.3 + tokens[:, None].double().sin()
        state.said[slots] = torch.sin(before + codes.double().repeat(1, 2) * torch.arange(1, 9))
        return state.said[slots]

    def lm_head(self, hidden: Tensor) -> Tensor:
        return (hidden[:, None] * self.mouth).sum(-1)

    def pause_probabilities(self, hidden: Tensor) -> Tensor:
        return hidden[:, : self.heads].square().float()


def poison(state: State, row: int) -> None:
    state.heard[row] = state.said[row] = torch.nan

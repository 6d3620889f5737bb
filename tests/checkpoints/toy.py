"""A small model with everything a checkpoint can trip over: a head that may be tied, batch norm, a derived buffer."""

from typing import Any, ClassVar

import torch
from torch import nn

from fastspeech.checkpoints import PretrainedConfig, PretrainedModel


class ToyConfig(PretrainedConfig):
    model_type = "toy"
    attribute_map: ClassVar = {"d_model": "width"}

    def __init__(self, width: int = 6, vocab_size: int = 5, tie_word_embeddings: bool = True, **kwargs: Any) -> None:
        if width < 1:
            raise ValueError(f"width must be positive, got {width}")
        self.width = width
        self.vocab_size = vocab_size
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**kwargs)


class ToyGenerationConfig:
    def __init__(self, num_beams: int = 1) -> None:
        self.num_beams = num_beams

    @classmethod
    def from_model_config(cls, config: ToyConfig) -> "ToyGenerationConfig":
        return cls(getattr(config, "num_beams", 1))

    @classmethod
    def from_pretrained(cls, folder: Any) -> "ToyGenerationConfig":
        return cls(int((folder / "generation_config.json").read_text()))

    def save_pretrained(self, folder: Any) -> None:
        (folder / "generation_config.json").write_text(str(self.num_beams))


class Positions(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.reset_buffers()

    def reset_buffers(self) -> None:
        self.register_buffer("rates", torch.arange(self.width, dtype=torch.float32), persistent=False)


class ToyPreTrainedModel(PretrainedModel):
    config_class = ToyConfig

    @staticmethod
    def key_map(name: str) -> str | None:
        if name == "scratch":
            return None
        return name.replace("old_norm.", "norm.").replace("classifier.", "head.")


class ToyModel(ToyPreTrainedModel):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = Positions(config.width)
        self.norm = nn.BatchNorm1d(config.width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.embed(ids) + self.positions.rates)


class ToyWithHead(ToyPreTrainedModel):
    generation_config_class = ToyGenerationConfig
    tied_keys: ClassVar = {"head.weight": "model.embed.weight"}

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.model = ToyModel(config)
        self.head = nn.Linear(config.width, config.vocab_size)
        self.tie_weights()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.model(ids))


def trained(config: ToyConfig | None = None) -> ToyWithHead:
    """A model whose every tensor differs from what it was made with."""
    torch.manual_seed(0)
    model = ToyWithHead(config or ToyConfig())
    model.train()
    for _ in range(3):
        model(torch.randint(0, model.config.vocab_size, (8,)))
    return model.eval()

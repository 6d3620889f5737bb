"""Base of the models: from a checkpoint to a module and back."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from fastspeech.checkpoints.config import PretrainedConfig, check_attention
from fastspeech.checkpoints.files import blaming, inside, locate
from fastspeech.checkpoints.loading import choose_device, choose_dtype, fill
from fastspeech.checkpoints.weights import StoredTensor, open_weights, save_weights
from fastspeech.errors import CheckpointError

GENERATION_FILE = "generation_config.json"


class PretrainedModel(nn.Module):
    """A module that is built from a configuration, and loaded from and saved to checkpoint folders.

    A subclass calls `super().__init__(config)`, builds its modules, and ends its `__init__` with `self.tie_weights()`
    where it ties any. Two conventions let it be built on the meta device, without memory, and filled from a file:

    * a module with non-persistent buffers makes them in a method `reset_buffers()`, which its `__init__` calls and
      which `from_pretrained` calls again once the module is on its device. The method chooses their dtypes;
    * a model that offers a base (`base_model_prefix`) and adds a head to it initialises the head with the
      `reset_parameters()` of its modules, as PyTorch's own do.

    Attributes:
        config_class: the configuration it is built from.
        base_model_prefix: the attribute under which a model with a head keeps the bare model. Checkpoints of the one
            load into the other: the prefix is added or removed.
        tied_keys: parameters that are another one where `config.tie_word_embeddings` holds, `{name: source}`. Only
            the source is saved.
        generation_config_class: the class of `generation_config`; None for a model that cannot generate.
        fixed_dtype: of the floating parameters and buffers, which they keep whatever the model, or one that holds it,
            is loaded as or cast to; None where they follow.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    base_model_prefix: ClassVar[str] = "model"
    main_input_name: ClassVar[str] = "input_features"
    tied_keys: ClassVar[dict[str, str]] = {}
    generation_config_class: ClassVar[type[Any] | None] = None
    fixed_dtype: ClassVar[torch.dtype | None] = None

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.name_or_path = ""
        maker = self.generation_config_class
        self.generation_config = None if maker is None else maker.from_model_config(config)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype != tensor.dtype == self.fixed_dtype else moved

        return super()._apply(move, recurse)

    @staticmethod
    def key_map(name: str) -> str | None:
        """The model's name for a tensor that a checkpoint calls `name`, or None to ignore it; both names without the
        base prefix.

        A model that was released under other names overrides this. Its own names map to themselves.
        """
        return name

    @classmethod
    def open_tensors(cls, folder: Path, config: Any) -> dict[str, StoredTensor]:
        """The tensors of a checkpoint folder by name, unread; see `open_weights`.

        A model that was released in another layout than one name for each tensor overrides this, and may put into
        `config` what only the tensors tell.
        """
        return open_weights(folder)

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the model has `generate`."""
        return cls.generation_config_class is not None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: PretrainedConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: torch.device | str | int | dict[str, Any] | None = None,
        attn_implementation: str | None = None,
        use_safetensors: bool | None = None,
        low_cpu_mem_usage: bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = "main",
        **overrides: Any,
    ) -> Self:
        """The model of a checkpoint folder or hub id, in evaluation mode.

        Args:
            pretrained_model_name_or_path: a folder, or a hub id such as "organisation/model".
            config: used in place of the checkpoint's config.json.
            dtype: of the floating parameters and buffers. "auto" and None: what config.json says, else that of the
                first floating tensor.
            torch_dtype: former name of `dtype`.
            device_map: "auto" for the GPU where there is one, a device, or `{"": device}`. None: the CPU.
            attn_implementation: "eager" or "sdpa", which are served alike; see `PretrainedConfig`.
            use_safetensors: True: refuse a checkpoint that has only .bin files. By default those serve too, where there
                is no other, read as tensors and no code.
            low_cpu_mem_usage: without effect: memory is taken once, for what is loaded.
            cache_dir: where downloads are kept.
            force_download: fetch what was fetched before again.
            local_files_only: never download.
            token: hub token.
            revision: branch, tag or commit on the hub.
            **overrides: fields of the configuration to replace.

        Raises:
            CheckpointError: anything wrong in the checkpoint; the message names it. Raised before memory is taken.
            ValueError: wrong arguments.
        """
        check_attention(attn_implementation)
        if use_safetensors is False:
            raise ValueError("use_safetensors=False: safetensors files go before .bin files wherever there are both")
        folder = locate(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            weights=True,
        )
        device = choose_device(device_map)
        if config is None:
            config = cls.config_class.from_folder(folder)
        unknown = [name for name in overrides if not hasattr(config, name)]
        if unknown:
            raise TypeError(f"{', '.join(unknown)}: neither an argument nor a field of {cls.config_class.__name__}")
        config = cls.config_class.from_dict(config.to_dict(), **overrides)
        stored = cls.open_tensors(folder, config)
        if use_safetensors and any(tensor.path.suffix == ".bin" for tensor in stored.values()):
            raise CheckpointError(f"{folder} has .bin files and no safetensors, which use_safetensors=True asks for")
        chosen = choose_dtype(dtype if dtype is not None else torch_dtype, config, stored)

        with blaming(folder), torch.device("meta"):
            model = cls(config)
        fill(model, folder, stored, device, chosen)
        config.dtype = model.dtype
        model.name_or_path = os.fspath(pretrained_model_name_or_path)
        maker = cls.generation_config_class
        if maker is not None and inside(folder, GENERATION_FILE).exists():
            with blaming(folder / GENERATION_FILE):
                model.generation_config = maker.from_pretrained(folder)
        return model.eval()

    def save_pretrained(self, save_directory: str | os.PathLike[str], max_shard_size: int | str = "5GB") -> None:
        """Write config.json, generation_config.json and the weights into `save_directory`, as transformers reads
        them."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.architectures = [type(self).__name__]
        self.config.dtype = self.dtype
        self.config.save_pretrained(folder)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
        tied = self.tied()
        tensors = {name: tensor for name, tensor in self.state_dict().items() if name not in tied}
        save_weights(tensors, folder, max_shard_size)

    def tied(self) -> dict[str, str]:
        """`tied_keys` where this configuration ties, else nothing."""
        return self.tied_keys if getattr(self.config, "tie_word_embeddings", False) else {}

    def tie_weights(self) -> None:
        """Make every tied parameter its source."""
        for name, source in self.tied().items():
            owner, _, attribute = name.rpartition(".")
            setattr(self.get_submodule(owner), attribute, self.get_parameter(source))

    @torch.no_grad()
    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None
    ) -> nn.Module:
        """Give embedding, head and `config.vocab_size` another number of tokens, and return the embedding.

        The first tokens keep their rows. New ones have the mean of the old. (transformers adds noise that is 1e-9 of
        their covariance.)

        Args:
            new_num_tokens: by default as many as there are.
            pad_to_multiple_of: round up to a multiple.

        Raises:
            ValueError: the embedding has rows for more than the vocabulary, such as sounds.
        """
        embedding = self.get_input_embeddings()  # type: ignore[operator]
        if len(embedding.weight) != self.config.vocab_size:
            raise ValueError(
                f"an embedding of {len(embedding.weight)} rows for {self.config.vocab_size} tokens cannot be resized"
            )
        count = len(embedding.weight) if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of:
            count = -(-count // pad_to_multiple_of) * pad_to_multiple_of
        embedding.weight = _resized(embedding.weight, count)
        embedding.num_embeddings = count
        head = getattr(self, "get_output_embeddings", lambda: None)()
        if head is not None:
            head.weight = _resized(head.weight, count)
            if head.bias is not None:
                head.bias = _resized(head.bias, count)
            head.out_features = count
        self.config.vocab_size = count
        self.tie_weights()
        return embedding

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """That of the first floating parameter."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    def num_parameters(self, only_trainable: bool = False) -> int:
        """The number of parameters, tied ones once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)


def _resized(rows: nn.Parameter, count: int) -> nn.Parameter:
    """`rows` cut to `count`, or followed by their mean as often as it takes."""
    mean = rows.float().mean(0, keepdim=True).to(rows.dtype)
    new = torch.cat((rows[:count], mean.expand(max(count - len(rows), 0), *rows.shape[1:])))
    return nn.Parameter(new, requires_grad=rows.requires_grad)

"""Kyutai STT: a decoder that writes a token of text for each frame of an audio codec that it hears."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.checkpoints import PretrainedModel
from fastspeech.checkpoints.weights import StoredTensor
from fastspeech.generation import GenerationConfig
from fastspeech.generation.interface import Record
from fastspeech.kernels import page_append, paged_attention, rope_attention
from fastspeech.kernels.onednn import through_onednn
from fastspeech.kernels.rope_attention.reference import rotate, turns
from fastspeech.layers.attention import attention
from fastspeech.layers.derived import Derived, DerivingModule
from fastspeech.layers.initialise import initialise
from fastspeech.layers.linear import direct
from fastspeech.layers.relaid import Product, Relaid
from fastspeech.models.kyutai_stt.config import KyutaiSpeechToTextConfig
from fastspeech.models.kyutai_stt.decoder import DecoderState, Embeddings, KeyValueCache, Layer, RMSNorm, Step
from fastspeech.models.kyutai_stt.generation import KyutaiGeneration
from fastspeech.models.kyutai_stt.keys import open_either
from fastspeech.models.kyutai_stt.mimi import MimiModel, MimiState
from fastspeech.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast


class KyutaiSpeechToTextPreTrainedModel(PretrainedModel):
    """What the Kyutai STT models share: loading and saving.

    `from_pretrained` reads what transformers saved and the original repositories too, where the codec is in a file
    beside the decoder's. `save_pretrained` writes transformers' layout; of the codec, the half that listens.
    """

    config_class = KyutaiSpeechToTextConfig
    config: KyutaiSpeechToTextConfig
    main_input_name = "input_values"

    @staticmethod
    def key_map(name: str) -> str | None:
        """Leaves out the codec's decoder half."""
        inner = name.removeprefix("codec_model.")
        return name if inner == name or MimiModel.key_map(inner) is not None else None

    @classmethod
    def open_tensors(cls, folder: Path, config: Any) -> dict[str, StoredTensor]:
        """The tensors of a checkpoint of either layout. `config` learns of the pause heads there, which the
        config.json of the original repositories does not tell of."""
        stored = open_either(folder, config.num_attention_heads, config.codec_config.num_attention_heads)
        heads = [tensor for name, tensor in stored.items() if name.startswith("extra_heads.")]
        if heads:
            config.extra_heads_num_heads, config.extra_heads_dim = len(heads), heads[0].shape[0]
        return stored


class KyutaiSpeechToTextModel(DerivingModule, KyutaiSpeechToTextPreTrainedModel):
    """The decoder without its head: text and codes to hidden states, in parallel or as streams."""

    def __init__(self, config: KyutaiSpeechToTextConfig) -> None:
        super().__init__(config)
        self.embed_tokens = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config)
        self._inv_freq = Derived()
        self._relaid = Relaid()
        initialise(self, config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> BaseModelOutputWithPast | tuple[Any, ...]:
        """Hidden states of T tokens.

        As in transformers, a token sees all tokens before it that are given with it, however many; the window of
        `config.sliding_window` tokens, within which the model was trained, bounds what it sees of former calls. `step`
        never sees more than the window.

        Args:
            input_ids: (B, T, 1 + num_codebooks) int64, at each place a token of text and the codes of the frame heard.
            attention_mask: (B, past + T), true at places to attend to; causal in any case.
            position_ids: (B, T) or (1, T) int64; by default they count on from the cache.
            past_key_values: the cache a former call returned; then only new tokens are given.
            inputs_embeds: (B, T, hidden) in place of the ids.
            use_cache: return a cache of keys and values. By default where the configuration says so and no gradients
                are recorded.
            output_attentions, output_hidden_states, return_dict: by default what the configuration says.
            cache_position: without effect, as the cache knows its length; transformers 4 has it.

        Raises:
            ValueError: ids and embeddings both or neither, ids without their codes, or a mask of another length.
        """
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        with_weights = config.output_attentions if output_attentions is None else output_attentions
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if use_cache is None:
            use_cache = config.use_cache and not torch.is_grad_enabled()
        cache = past_key_values
        if cache is None and use_cache:
            cache = KeyValueCache(config.num_hidden_layers, config.sliding_window)
        record = Record(with_states, with_weights)
        x = inputs_embeds if input_ids is None else self._embedded(input_ids)
        last = self._run(cast(Tensor, x), attention_mask, position_ids, cache, record)
        output = BaseModelOutputWithPast(
            last_hidden_state=last,
            past_key_values=cache if use_cache else None,
            hidden_states=tuple(record.hidden_states) if with_states else None,
            attentions=tuple(record.attentions) if with_weights else None,
        )
        return_dict = config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def start(self, slots: int) -> DecoderState:
        """The state of so many texts that have not begun."""
        config = self.config
        shape = (slots, config.num_key_value_heads, math.ceil(config.sliding_window / 16) * 16, config.head_dim)
        # What is made in inference mode could not be written to outside it.
        with torch.inference_mode(False), torch.no_grad(), torch.device(self.device):
            empty = [torch.zeros(2, *shape, dtype=self.dtype).unbind(0) for _ in self.layers]
            pages = [(keys, values) for keys, values in empty]
            return DecoderState(pages, torch.zeros(slots, dtype=torch.int64), self._steps(self.product(slots)))

    @torch.no_grad()
    def step(
        self,
        tokens: Tensor,
        codes: Tensor,
        state: DecoderState,
        slots: Tensor | None = None,
        record: Record | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """Read one further token of some texts.

        Args:
            tokens: (rows,) int64, of text.
            codes: (rows, num_codebooks) int64, those of the frame heard.
            state: what `start` gave; of it, the slots named are read and written.
            slots: (rows,) int64, distinct, the slot of each row; None where row r is slot r, all of them.
            record: takes the hidden states, where it asks for them.
            active: (rows,) bool, false where a row is none: its slot stays as it is, and what it gives says nothing.

        Returns:
            (rows, hidden), after the last norm. A row depends on its own text alone.
        """
        config = self.config
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        positions = state.positions if slots is None else state.positions[slots]
        further = positions + 1
        at = positions
        if active is not None:
            idle = active.logical_not()
            at, further = positions.masked_fill(idle, -1), torch.where(idle, positions, further)
        table = None if slots is None else slots[:, None].int()
        inv_freq = self._inverse_frequencies()
        record = Record() if record is None else record
        x = self.embed_tokens(torch.cat((tokens[:, None], codes), 1))
        x, h = self._first_norm()(x, None)
        steps = self._steps() if torch.compiler.is_compiling() else state.steps
        for step, pages in zip(steps, state.pages, strict=True):
            if record.with_states:
                record.hidden_states.append(x[:, None])
            by_head = step.qkv(h).view(len(x), 1, -1, head_dim)
            q, k, v = by_head.split([heads, kv_heads, kv_heads], dim=2)
            page_append(k, v, *pages, table, at, inv_freq=inv_freq)
            y = paged_attention(q, *pages, table, at, inv_freq=inv_freq, window=config.sliding_window)
            x, h = step.norm_mlp(x, step.out(y.flatten(1)))
            x, h = step.norm_next(x, step.mlp(h))
        if record.with_states:
            record.hidden_states.append(h[:, None])
        if slots is None:
            state.positions.copy_(further)
        else:
            state.positions.index_copy_(0, slots, further)
        return h

    def _embedded(self, input_ids: Tensor) -> Tensor:
        columns = 1 + self.config.num_codebooks
        if input_ids.dim() != 3 or input_ids.shape[2] != columns:
            raise ValueError(
                f"input_ids must be (batch, tokens, {columns}), a token of text and {columns - 1} codes at each place; "
                f"got {tuple(input_ids.shape)}"
            )
        return self.embed_tokens(input_ids)

    def _run(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: KeyValueCache | None,
        record: Record,
        steps: list[Step] | None = None,
    ) -> Tensor:
        config = self.config
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        rows, count, _ = x.shape
        past, kept = (0, 0) if cache is None else (cache.length, cache.kept)
        if attention_mask is not None and tuple(attention_mask.shape) != (rows, past + count):
            raise ValueError(
                f"attention_mask must be ({rows}, {past + count}) for {past} tokens read and {count} new ones, "
                f"got {tuple(attention_mask.shape)}"
            )
        if position_ids is None:
            position_ids = torch.arange(past, past + count, device=x.device)[None]
        inv_freq = self._inverse_frequencies()
        dropout = config.attention_dropout if self.training else 0.0
        mask = None
        if attention_mask is not None or (kept and count > 1):
            mask = torch.ones(count, kept + count, dtype=torch.bool, device=x.device).tril(kept)
        if mask is not None and attention_mask is not None:
            mask = mask & attention_mask[:, None, None, past - kept :].bool()
        fused = cache is None and mask is None and not record.with_weights and not dropout
        turn = turns(inv_freq, position_ids)

        x, h = self._first_norm()(x, None)
        for index, step in enumerate(self._steps() if steps is None else steps):
            if record.with_states:
                record.hidden_states.append(x)
            q, k, v = step.qkv(h).view(rows, count, -1, head_dim).split([heads, kv_heads, kv_heads], dim=2)
            if fused:
                y = rope_attention(q, k, v, inv_freq, position_ids, position_ids, causal=True, interleaved=False)
                y = y.flatten(2)
            else:
                q, k = (rotate(side, turn, interleaved=False) for side in (q, k))
                q, k, v = (side.transpose(1, 2) for side in (q, k, v))
                if cache is not None:
                    k, v = cache.append(index, k, v)
                causal = mask is None and count > 1
                y, weights = attention(q, k, v, mask, causal, dropout, record.with_weights)
                if weights is not None:
                    record.attentions.append(weights)
            x, h = step.norm_mlp(x, step.out(y))
            x, h = step.norm_next(x, step.mlp(h))
        if record.with_states:
            record.hidden_states.append(h)
        if cache is not None:
            cache.advance(count)
        return h

    def product(self, rows: int) -> Product | None:
        """What makes linear maps for steps of so many rows; None where they are best taken as they are."""
        if torch.is_grad_enabled() or not through_onednn(self.norm.weight):
            return None
        return self._relaid.product(rows)

    def _steps(self, product: Product | None = None) -> list[Step]:
        """The layers as functions of their present parameters, linear maps made by `product` where it is given."""
        layers = self._layers()
        following = [*(layer.input_layernorm for layer in layers[1:]), self.norm]
        return [layer.step(norm, product) for layer, norm in zip(layers, following, strict=True)]

    def _first_norm(self) -> Any:
        return self._layers()[0].input_layernorm.add_and_norm()

    def _layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))

    def _inverse_frequencies(self) -> Tensor:
        """(head_dim / 2,) float32, the angles by which a step of one position turns."""
        weight = self.norm.weight

        def compute() -> Tensor:
            # As transformers computes them, to the last bit: far into a stream it turns angles.
            head_dim = self.config.head_dim
            exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=weight.device) / head_dim
            return 1.0 / self.config.rope_theta**exponents

        return self._inv_freq.get((weight,), compute)


@dataclass
class KyutaiState:
    """Where a number of streams are, one a slot, in the decoder and in its codec."""

    decoder: DecoderState
    codec: MimiState

    def first(self, slots: int) -> "KyutaiState":
        """The state of the first slots, in the same memory."""
        return KyutaiState(self.decoder.first(slots), self.codec.first(slots))

    def reset(self, slots: Tensor | None = None) -> None:
        """Make `slots` (k,) int64, or all, as good as new."""
        self.decoder.reset(slots)
        self.codec.reset(slots)


class KyutaiSpeechToTextForConditionalGeneration(KyutaiGeneration, KyutaiSpeechToTextPreTrainedModel):  # type: ignore[misc]
    """The decoder with its head and its codec: audio to text.

    The codec stays float32 whatever the model is loaded as or cast to, as rounding changes codes.

    Attributes:
        extra_heads: one linear map for each horizon of which a checkpoint can tell the probability of a pause; see
            `pause_probabilities`. transformers has no place for them.
    """

    generation_config_class = GenerationConfig

    def __init__(self, config: KyutaiSpeechToTextConfig) -> None:
        super().__init__(config)
        self.model = KyutaiSpeechToTextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.extra_heads = nn.ModuleList(
            nn.Linear(config.hidden_size, config.extra_heads_dim, bias=False)
            for _ in range(config.extra_heads_num_heads)
        )
        for head in (self.lm_head, self.extra_heads):
            initialise(head, config.initializer_range)
        self.codec_model = MimiModel(config.codec_config)
        self.codec_model.generation_config = GenerationConfig.from_model_config(config.codec_config)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits of T tokens, and the loss where `labels` are given. Arguments as `KyutaiSpeechToTextModel.forward`,
        and:

        Args:
            labels: (B, T) int64, the tokens of text at the same places as in `input_ids`, -100 where none counts. They
                are shifted here: the logits at a place are held against the label of the next. The loss is the mean
                cross-entropy over the labels that count, in float32.
            logits_to_keep: give the logits of the last so many tokens only, or of those at these places (1-D); 0 for
                all. `labels` need all.
            num_items_in_batch: divide the summed loss by this in place of the number of labels that count.

        Raises:
            ValueError: as `KyutaiSpeechToTextModel.forward`; labels of another shape than the logits.
        """
        outputs = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            return_dict=True,
        )
        kept = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None if labels is None else _next_token_loss(logits, labels, num_items_in_batch)
        fields = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **fields)
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def start(self, slots: int, frames: int = 1) -> KyutaiState:
        """The state of so many streams that have not begun. `frames`: how many of them the codec will be given at a
        time; see `MimiModel.start`."""
        return KyutaiState(self.model.start(slots), self.codec_model.start(slots, frames))

    def step(
        self,
        tokens: Tensor,
        codes: Tensor,
        state: KyutaiState,
        slots: Tensor | None = None,
        record: Record | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """(rows, hidden) after one further token of some streams, of which `lm_head` and `extra_heads` tell what
        follows; arguments as `KyutaiSpeechToTextModel.step`.

        The codec is a step of its own, `codec_model.encode_frames(samples, state.codec, slots)`, which may run ahead.
        """
        return self.model.step(tokens, codes, state.decoder, slots, record, active)

    def pause_probabilities(self, hidden: Tensor) -> Tensor:
        """(rows, heads) float32 of hidden (rows, hidden): how probable a pause is of at least 0.5, 1, 2 and 3 s, by the
        four heads of stt-1b-en_fr; a checkpoint without them gives (rows, 0).

        A head's first output is for "pause" (moshi's server, `asr.rs`).
        """
        told = [direct(head)(hidden).float().softmax(-1)[:, 0] for head in self.extra_heads]
        return torch.stack(told, 1) if told else hidden.new_empty(len(hidden), 0, dtype=torch.float32)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """As `PretrainedModel.from_pretrained`. What generation_config.json says of the codec, under names that begin
        with "codec_", becomes that of `codec_model.generation_config`, as in transformers."""
        model = super().from_pretrained(*args, **kwargs)
        own = vars(model.generation_config)
        told = {name: own.pop(name) for name in list(own) if name.startswith(_CODEC)}
        codec = cast(GenerationConfig, model.codec_model.generation_config)
        model.codec_model.generation_config = GenerationConfig(
            **codec.to_dict() | {name.removeprefix(_CODEC): value for name, value in told.items()}
        )
        return model

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As `PretrainedModel.save_pretrained`, with the codec's parameters of generation put back."""
        own = cast(GenerationConfig, self.generation_config)
        codec = cast(GenerationConfig, self.codec_model.generation_config)
        self.generation_config = own.filled_from(
            GenerationConfig(**{_CODEC + name: value for name, value in codec.to_dict().items()})
        )
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self.generation_config = own


_CODEC = "codec_"


def _next_token_loss(logits: Tensor, labels: Tensor, count: int | Tensor | None) -> Tensor:
    """Cross-entropy of logits (B, T, V) at each place against labels (B, T) at the next, -100 left out: the mean, or
    the sum over `count`."""
    if labels.shape != logits.shape[:2]:
        raise ValueError(f"labels {tuple(labels.shape)} and logits of {tuple(logits.shape[:2])} tokens must agree")
    following = F.pad(labels[:, 1:], (0, 1), value=-100).to(logits.device).flatten()
    reduction = "mean" if count is None else "sum"
    loss = F.cross_entropy(logits.float().flatten(0, 1), following, reduction=reduction)
    return loss if count is None else loss / count

"""How Kyutai STT writes down a recording: one token for each frame of the codec, by transformers' order of frames or by
the original's.

The decoder reads at each step the token before and the codes of one frame. Which frame, the two see differently:

* "hf", as transformers: the first step has no frame, and each further one hears the frame in front of its own. The
  recording is encoded in windows of `audio_window_size` frames, of which the first is encoded twice, so that all frames
  but those of the first window come that much later; with None, all of it is one window, encoded once. The codec goes
  on from window to window, as the conversion script writes it; transformers' forgets where `codec_use_cache` is false.
* "moshi", as the original's `LMGen.step` is used by Kyutai's script for files and by the script that measured the
  published error rates: the first step hears no frame either, but takes one, which is lost; each further one hears its
  own frame. moshi's `run_inference` differs, and steps once more on the first frame; its Rust server hears each frame a
  step late, as "hf" with None does.
"""

import warnings
from typing import Any, Literal, cast

import torch
from torch import Tensor

from fastspeech.generation import GenerationConfig, GenerationMixin, graphs
from fastspeech.generation.interface import Record
from fastspeech.generation.plan import Plan
from fastspeech.layers.linear import direct
from fastspeech.models.kyutai_stt.decoder import DecoderState
from fastspeech.outputs import BaseModelOutput, GenerateDecoderOnlyOutput

Alignment = Literal["hf", "moshi"]

_PIECE = 32
"""Frames, of all rows together, that the codec takes at a time."""

_FEW_STEPS = 16
"""With fewer of them a graph of the decoder's step would not save what it takes to record it."""


class _RecordedStep:
    """The decoder's step of all rows of a state as a graph (see `Graphs`)."""

    def __init__(self, model: Any, state: DecoderState) -> None:
        device, rows = state.positions.device, len(state.positions)
        self._model, self._state = model, state
        with torch.inference_mode(False), torch.device(device):
            self._tokens = torch.zeros(rows, dtype=torch.int64)
            self._codes = torch.zeros(rows, model.config.num_codebooks, dtype=torch.int64)
            self._hidden = torch.zeros(rows, model.config.hidden_size, dtype=model.dtype)
            self._active = torch.zeros(rows, dtype=torch.bool)
        self._graphs = graphs.Graphs(device)
        # To record the step takes it, which changes nothing while no row is active.
        self._graphs.record("step", self._step)
        self._active.fill_(True)

    def __call__(self, tokens: Tensor, codes: Tensor) -> Tensor:
        """(rows, hidden), which holds until the next call, after tokens (rows,) and codes (rows, codebooks)."""
        self._tokens.copy_(tokens)
        self._codes.copy_(codes)
        self._graphs.run("step")
        return self._hidden

    def _step(self) -> None:
        self._hidden.copy_(self._model.step(self._tokens, self._codes, self._state, active=self._active))


class Listening:
    """A batch of recordings that are being written down; what `generate` calls a cache.

    Args:
        model: a KyutaiSpeechToTextForConditionalGeneration.
        samples: (inputs, channels, frames * frame_size), what the codec hears, in the order in which it does.
        alignment: as in `KyutaiGeneration.generate`.
        rows_per_input: texts of each recording.
        steps: that will be taken at most.

    Attributes:
        length: steps so far.
        head: hidden states to the logits of tokens.
    """

    def __init__(self, model: Any, samples: Tensor, alignment: Alignment, rows_per_input: int, steps: int) -> None:
        inputs = len(samples)
        head = (model.model.product(inputs * rows_per_input) or direct)(model.lm_head)
        self.rows_per_input = rows_per_input
        self.length = 0
        self.head = head if alignment == "hf" else lambda hidden: head(hidden)[:, :-1]
        self._model = model
        self._samples = samples
        self._delay = 1 if alignment == "hf" else 0
        self._ahead = max(1, _PIECE // inputs)
        self._codec = model.codec_model.start(inputs, self._ahead)
        self._decoder = model.model.start(inputs * rows_per_input)
        self._recorded: _RecordedStep | None = None
        device = samples.device
        if graphs.captures(device) and steps >= _FEW_STEPS and not torch.is_autocast_enabled(device.type):
            self._recorded = _RecordedStep(model.model, self._decoder)
        self._codes: Tensor | None = None
        self._first = 0
        # of the recordings and the texts that are still there
        self._inputs: Tensor | None = None
        self._rows: Tensor | None = None

    def step(self, tokens: Tensor, record: Record | None) -> Tensor:
        """(rows, hidden) after the tokens (rows,) of the next step."""
        codes = self._silent() if self.length == 0 else self._heard(self.length - self._delay)
        codes = codes.repeat_interleave(self.rows_per_input, 0)
        self.length += 1
        if self._recorded is not None and self._rows is None and record is None:
            return self._recorded(tokens, codes)
        return self._model.model.step(tokens, codes, self._decoder, self._rows, record)

    def keep(self, inputs: list[int]) -> None:
        """Go on with these recordings only, in this order."""
        places = torch.tensor(inputs, device=self._samples.device)
        before = self._inputs
        self._inputs = places if before is None else before[places]
        self._rows = (
            self._inputs[:, None] * self.rows_per_input + torch.arange(self.rows_per_input, device=places.device)
        ).flatten()
        self._samples = self._samples[places]
        if self._codes is not None:
            self._codes = self._codes[places]

    def _silent(self) -> Tensor:
        """(inputs, codebooks), the codes that stand for no frame."""
        config = self._model.config
        shape = len(self._samples), config.num_codebooks
        return torch.full(shape, config.audio_bos_token_id, device=self._samples.device)

    def _heard(self, frame: int) -> Tensor:
        """(inputs, codebooks), the codes of a frame, by its number in what the codec hears."""
        size = self._model.config.frame_size
        while self._codes is None or frame >= self._first + self._codes.shape[2]:
            self._first += 0 if self._codes is None else self._codes.shape[2]
            piece = self._samples[..., self._first * size : (self._first + self._ahead) * size]
            self._codes = self._model.codec_model.encode_frames(piece, self._codec, self._inputs)
        return self._codes[..., frame - self._first]


class KyutaiGeneration(GenerationMixin):
    """Adds `generate` to a KyutaiSpeechToTextForConditionalGeneration."""

    main_input_name = "input_values"

    def generate(  # type: ignore[override]
        self,
        input_values: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        padding_mask: Tensor | None = None,
        max_new_tokens: int | None = None,
        alignment: Alignment = "hf",
        stop_at_audio_end: bool = False,
        **kwargs: Any,
    ) -> Tensor | GenerateDecoderOnlyOutput:
        """Write down recordings: a token for each frame, and for each row of a batch as many as the longest has.

        No token ends a text, unless `eos_token_id` names one. `alignment="hf"` gives transformers' tokens. With
        "moshi" words come two frames earlier than with transformers' usual `audio_window_size` of 1, text begins with
        the token `vocab_size - 1`, and that is never written: the head's last row, which conversion made of zeros, is
        left out. (Attention in the codec is transformers' under both. The original's loses sight of one latent more in
        every second query, 20 s into a recording.)

        Args:
            input_values: (B, channels, samples) floating, at the codec's rate, as the processor gives them. Of what
                makes no whole frame at the end, nothing is heard.
            generation_config: parameters, in place of those of the model where both have them.
            padding_mask: (B, samples), true at the samples of a recording, without the silence around it. Without
                effect but for `stop_at_audio_end`, as in transformers.
            max_new_tokens: fewer tokens than there are frames.
            alignment: which frame each step hears; see `fastspeech.models.kyutai_stt.generation`.
            stop_at_audio_end: write no tokens for the padding that makes the recordings of a batch equally long: each
                row ends where it would end alone, and is filled with `pad_token_id`.
            **kwargs: further parameters of generation, `audio_window_size` among them (frames, with "hf"; by default
                the checkpoint's, None where that says nothing), and the arguments of `GenerationMixin.generate` that
                make sense without an encoder: rules, criteria, a streamer.

        Returns:
            (B * num_return_sequences, 1 + tokens) int64, the token that text begins with included; with
            return_dict_in_generate a `GenerateDecoderOnlyOutput`.

        Raises:
            ValueError: no audio or less than a frame of it, a mask that is missing or does not fit, beams, an
                assistant, attention weights to be recorded, or an argument that is not known.
        """
        config = cast(Any, self).config
        if alignment not in ("hf", "moshi"):
            raise ValueError(f"alignment must be 'hf' or 'moshi', got {alignment!r}")
        if input_values is None:
            raise ValueError("no audio: give input_values, as a tensor")
        channels = config.codec_config.audio_channels
        if input_values.dim() != 3 or input_values.shape[1] != channels or not input_values.is_floating_point():
            raise ValueError(
                f"input_values must be (batch, {channels}, samples) floats, got {tuple(input_values.shape)} "
                f"{input_values.dtype}"
            )
        frames = input_values.shape[2] // config.frame_size
        if not frames:
            raise ValueError(f"{input_values.shape[2]} samples are no frame; one has {config.frame_size}")
        if max_new_tokens is None and generation_config is not None:
            max_new_tokens = generation_config.max_new_tokens
        if max_new_tokens is not None and max_new_tokens > frames:
            warnings.warn(f"max_new_tokens={max_new_tokens} is cut to {frames}, the frames there are", stacklevel=2)
        most = frames if max_new_tokens is None else min(max_new_tokens, frames)
        limit: int | list[int] = most
        if stop_at_audio_end:
            if padding_mask is None or padding_mask.shape != input_values[:, 0].shape:
                raise ValueError(f"stop_at_audio_end needs the padding_mask, {tuple(input_values[:, 0].shape)}")
            limit = [min(most, own) for own in _own_frames(padding_mask, config.frame_size)]
        for name in ("assistant_model", "custom_generate"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name}: not implemented for Kyutai STT")
        asked = vars(self.generation_config) | vars(generation_config or GenerationConfig()) | kwargs
        if (asked.get("num_beams") or 1) > 1:
            raise ValueError("num_beams: there is no beam search for Kyutai STT")
        if asked.get("output_attentions"):
            raise ValueError("output_attentions: attention weights are not recorded; `forward` gives them")
        heard = input_values[..., : frames * config.frame_size]
        window = asked.get("audio_window_size")
        kwargs.pop("audio_window_size", None)
        if alignment == "moshi":
            kwargs["bos_token_id"] = kwargs["decoder_start_token_id"] = config.vocab_size - 1
        elif window is not None:
            if window < 1:
                raise ValueError(f"audio_window_size must be positive, or None for all, got {window}")
            heard = torch.cat((heard[..., : window * config.frame_size], heard), 2)
        output = super().generate(heard, generation_config, max_new_tokens=limit, alignment=alignment, **kwargs)
        if isinstance(output, Tensor):
            return output
        kept = ("sequences", "scores", "logits", "past_key_values")
        fields = {name: output[name] for name in kept if name in output}
        return GenerateDecoderOnlyOutput(**fields, hidden_states=output.decoder_hidden_states)

    def silence(self, rows: int, seconds: float) -> dict[str, Tensor]:
        """As `GenerationMixin.silence`, a frame at least."""
        model = cast(Any, self)
        codec = model.config.codec_config
        samples = max(round(seconds * codec.sampling_rate), model.config.frame_size)
        return {"input_values": torch.zeros(rows, codec.audio_channels, samples, device=model.device)}

    def start_decoding(self, model_inputs: dict[str, Any], rows_per_input: int, capacity: int) -> Listening:
        """The recordings, of which nothing has been written (see `generation.interface.StepModel`)."""
        return Listening(self, model_inputs["input_values"], model_inputs["alignment"], rows_per_input, capacity)

    @torch.no_grad()
    def decode(self, input_ids: Tensor, cache: Listening, record: Record | None = None, every: bool = False) -> Tensor:
        """Logits (rows, vocabulary) after one further token input_ids (rows, 1) of each row."""
        return cache.head(cache.step(input_ids[:, 0], record))

    def _model_inputs(self, inputs: Tensor | None, given: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(name for name, value in given.items() if value is not None and name != "alignment"):
            raise ValueError(f"neither a parameter of generate nor an input it takes here: {', '.join(unknown)}")
        return {"input_values": inputs, "alignment": given["alignment"]}

    def _encoded(self, model_inputs: dict[str, Any], plan: Plan) -> BaseModelOutput:
        return BaseModelOutput()  # there is no encoder whose states could be asked for


def _own_frames(padding_mask: Tensor, size: int) -> list[int]:
    """The frames of each row, with the silence behind it: what is behind the row that ends last, all have."""
    places = torch.arange(1, padding_mask.shape[1] + 1, device=padding_mask.device)
    ends = (places * padding_mask.bool()).amax(1)
    return ((ends + padding_mask.shape[1] - ends.amax()) // size).tolist()

"""`generate`, for models that give the step interface."""

import inspect
from collections.abc import Iterable
from typing import Any, cast

import torch

from fastspeech.outputs import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput

from .beam import beam_search
from .config import GenerationConfig
from .interface import LogitsRule, StepModel, StoppingCriterion, Streamer
from .logits_rules import AllowedTokens, as_list
from .plan import make_plan
from .sampling import sample


class GenerationMixin:
    """Adds `generate` to an encoder-decoder that has `start_decoding` and `decode` (see `StepModel`).

    Attributes:
        generation_config: the model's own parameters.
        main_input_name: the input `generate` takes as its first argument.
        ignored_inputs: further inputs that `generate` takes and drops, such as what a processor adds for itself.
        decoder_positions: the longest sequence the decoder has positions for; None where there is no such limit.
        max_tokens_per_second: of audio, for text in plain Latin letters; more is a loop. None where that is not known.
            `generate` does not heed it; the pipeline does.
    """

    generation_config: GenerationConfig
    main_input_name: str
    ignored_inputs: tuple[str, ...] = ()
    decoder_positions: int | None = None
    max_tokens_per_second: float | None = None

    # Not inference_mode: what it makes (encoder outputs, scores, tables a model prepares once) could not be used
    # in training afterwards.
    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Iterable[LogitsRule] | None = None,
        stopping_criteria: Iterable[StoppingCriterion] | None = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        *,
        streamer: Streamer | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | GenerateEncoderDecoderOutput | GenerateBeamEncoderDecoderOutput:
        """Decode what was said.

        Parameters come from `kwargs`, else `generation_config`, else the model's own, else `GenerationConfig.DEFAULTS`.
        Meanings are transformers'. `num_beams` > 1 is beam search, `do_sample` draws, otherwise the likeliest token
        is taken at each step. `use_cache` and `cache_implementation` have no effect: there is always a cache, and its
        memory is taken once.

        Args:
            inputs: the audio, in the form of the model's main input; may be given by name instead.
            generation_config: parameters.
            logits_processor: further rules, called with (tokens so far, scores); they apply after those of the
                parameters and before those of sampling.
            stopping_criteria: called with (tokens so far, scores of each step if recorded); say which rows end.
            prefix_allowed_tokens_fn: called with (utterance, its tokens so far); gives the tokens that may follow.
            streamer: given the prompt and then each step's tokens; not in beam search.
            **kwargs: parameters by name, and inputs of the model. `max_new_tokens` may be a list, or a tensor (B,),
                of one number for each utterance. `decoder_input_ids` (B, n) is the prompt; where no row of it begins with
                `decoder_start_token_id`, that is put first. Without it the prompt is that token.

        Returns:
            The sequences (B * num_return_sequences, length) int64, prompt included, padded behind their ends; with
            return_dict_in_generate a record of them and of what else was asked for.

        Raises:
            ValueError: an argument that is neither a parameter nor an input of the model, a parameter out of its range
                or not implemented, or no audio.
        """
        config = generation_config if generation_config is not None else GenerationConfig()
        config = config.filled_from(self.generation_config)
        row_limits = _each(kwargs.get("max_new_tokens"))
        if row_limits is not None:
            kwargs["max_new_tokens"] = max(row_limits, default=0)
        model_inputs = self._model_inputs(inputs, config.update(**kwargs))
        prompt = self._prompt(model_inputs, config)
        if row_limits is not None and (len(row_limits) != len(prompt) or min(row_limits) < 1):
            raise ValueError(f"max_new_tokens must be at least 1, for each of {len(prompt)} utterances: {row_limits}")
        plan = make_plan(
            config,
            prompt_length=prompt.shape[1],
            positions=self.decoder_positions,
            device=prompt.device,
            row_limits=row_limits,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            prefix_allowed_tokens_fn=prefix_allowed_tokens_fn,
            streamer=streamer,
        )
        rows = max(plan.beams, plan.returned)
        model = cast(StepModel, self)
        # The last token is never read.
        cache = model.start_decoding(model_inputs, rows, plan.max_length - 1)
        search = beam_search if plan.beams > 1 else sample
        output = search(model, cache, prompt.repeat_interleave(rows, 0), plan)
        return output if plan.as_record else output.sequences

    def _model_inputs(self, inputs: torch.Tensor | None, given: dict[str, Any]) -> dict[str, Any]:
        """The inputs of the model by name, the main one among them."""
        named = {name: value for name, value in given.items() if value is not None}
        if inputs is not None:
            if self.main_input_name in named:
                raise ValueError(f"the audio is given twice: as the first argument and as {self.main_input_name}")
            named[self.main_input_name] = inputs
        forward = inspect.signature(self.forward).parameters.keys()  # type: ignore[attr-defined]
        taken = (forward | {"decoder_input_ids", *self.ignored_inputs}) - _ONLY_OF_FORWARD
        if unknown := sorted(named.keys() - taken):
            raise ValueError(f"neither a parameter of generate nor an input it takes here: {', '.join(unknown)}")
        mask = named.pop("decoder_attention_mask", None)
        if mask is not None and not mask.all():
            raise ValueError("decoder_attention_mask: prompts of one batch must be of one length, without padding")
        return {name: value for name, value in named.items() if name not in self.ignored_inputs}

    def _prompt(self, model_inputs: dict[str, Any], config: GenerationConfig) -> torch.Tensor:
        """(B, n) int64: the tokens to start from. Takes `decoder_input_ids` out of the inputs."""
        audio = model_inputs.get(self.main_input_name)
        if audio is None and "encoder_outputs" in model_inputs:
            audio = model_inputs["encoder_outputs"][0]
        if not isinstance(audio, torch.Tensor):
            raise ValueError(f"no audio: give {self.main_input_name} or encoder_outputs, as tensors")

        start_id = config.decoder_start_token_id if config.decoder_start_token_id is not None else config.bos_token_id
        start: torch.Tensor | None = None
        if start_id is not None:
            start = torch.tensor(as_list(start_id), device=audio.device).unsqueeze(1)
            if len(start) not in (1, len(audio)):
                raise ValueError(f"decoder_start_token_id has {len(start)} tokens for {len(audio)} utterances")
            start = start.expand(len(audio), 1)
        prompt = model_inputs.pop("decoder_input_ids", start)
        if prompt is None:
            raise ValueError("no prompt: give decoder_input_ids, or set decoder_start_token_id")
        if prompt.dim() != 2 or len(prompt) != len(audio) or prompt.shape[1] == 0 or prompt.is_floating_point():
            raise ValueError(
                f"decoder_input_ids must be ({len(audio)}, n) token ids, got {tuple(prompt.shape)} {prompt.dtype}"
            )
        prompt = prompt.to(audio.device, torch.int64)
        if start is not None and (prompt[:, :1] != start).all():
            prompt = torch.cat((start, prompt), 1)
        return prompt


def _each(limit: Any) -> list[int] | None:
    """The limits of each utterance; None where there is one for all."""
    if isinstance(limit, torch.Tensor):
        limit = limit.tolist()  # a number where it has no dimension
    return list(limit) if isinstance(limit, list | tuple) else None


_ONLY_OF_FORWARD = frozenset(
    {"labels", "past_key_values", "decoder_inputs_embeds", "decoder_position_ids", "return_dict"}
)
"""Inputs of a model's `forward` that `generate` would not honour."""

"""`generate`, for models that give the step interface."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch

from fastspeech.outputs import BaseModelOutput, Tensors

from .beam import beam_search
from .config import GenerationConfig
from .interface import LogitsRule, StepModel, StoppingCriterion, Streamer, run
from .logits_rules import AllowedTokens, RuleList, as_list
from .plan import Plan, make_plan
from .sampling import sample
from .seats import graphable, serves
from .speculative import Drafter, speculate
from .stopping import CriterionList


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
        synced_gpus: bool | None = None,
        assistant_model: Any = None,
        streamer: Streamer | None = None,
        negative_prompt_ids: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        use_model_defaults: bool | None = None,
        custom_generate: Callable[..., Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Decode what was said.

        Parameters come from `kwargs`, else `generation_config`, else the model's own, else `GenerationConfig.DEFAULTS`.
        Meanings are transformers'. `num_beams` > 1 is beam search, `do_sample` draws, otherwise the likeliest token
        is taken at each step. `use_cache` and `cache_implementation` have no effect: there is always a cache, and its
        memory is taken once. On a GPU, greedy search with nothing but limits and ends runs as CUDA graphs over memory
        that the model keeps (see `warmup`), until it is moved; so do the decoder's steps of any other search whose
        record is not asked for, over further memory.

        Args:
            inputs: the audio, in the form of the model's main input; may be given by name instead.
            generation_config: parameters.
            logits_processor: further rules, called with (tokens so far, scores); they apply after those of the
                parameters and before those of sampling.
            stopping_criteria: called with (tokens so far, scores of each step if recorded); say which rows end.
            prefix_allowed_tokens_fn: called with (utterance, its tokens so far); gives the tokens that may follow.
            synced_gpus: must be false: there is no sharding over GPUs to keep in step.
            assistant_model: a smaller model of the same vocabulary, which drafts tokens for this one to check several
                at once (see `speculate`): one utterance, no beams; the tokens are those of greedy search. It is given
                the same audio, or `assistant_encoder_outputs`.
            streamer: given the prompt and then each step's tokens; not in beam search.
            negative_prompt_ids, negative_prompt_attention_mask: must be None: there is no classifier-free guidance.
            use_model_defaults: False: take nothing but the special tokens from the model's own parameters.
            custom_generate: called in place of the decoding loop, as transformers does, with (model, prompt,
                logits_processor=, stopping_criteria=, generation_config=, encoder_outputs=, and the model's inputs);
                returned is what it returns. The first two are callable lists, the config has no gaps.
            **kwargs: parameters by name, and inputs of the model. `max_new_tokens` may be a list, or a tensor (B,),
                of one number for each utterance. `decoder_input_ids` (B, n) is the prompt; where no row of it begins
                with `decoder_start_token_id`, that is put first. Without it the prompt is that token.

        Returns:
            The sequences (B * num_return_sequences, length) int64, prompt included, padded behind their ends; with
            return_dict_in_generate a record of them and of what else was asked for.

        Raises:
            ValueError: an argument that is neither a parameter nor an input of the model, a parameter out of its range
                or not implemented, or no audio.
        """
        if synced_gpus:
            raise ValueError("synced_gpus: sharded models are not served")
        if negative_prompt_ids is not None or negative_prompt_attention_mask is not None:
            raise ValueError("negative_prompt_ids: classifier-free guidance is not implemented")
        if custom_generate is not None and not callable(custom_generate):
            raise ValueError(f"custom_generate must be a function, for no code is loaded by name: {custom_generate!r}")
        config, model_inputs, prompt, plan = self.planned(
            inputs,
            generation_config,
            logits_processor,
            stopping_criteria,
            prefix_allowed_tokens_fn,
            streamer,
            use_model_defaults,
            **kwargs,
        )
        if custom_generate is not None:
            return self._custom(custom_generate, model_inputs, prompt, plan, config)
        if assistant_model is not None:
            return self._assisted(assistant_model, model_inputs, prompt, plan, config)
        rows = max(plan.beams, plan.returned)
        model = cast(StepModel, self)
        prompt = prompt.repeat_interleave(rows, 0)
        encoded: BaseModelOutput | None = None
        cache = model_inputs.get("past_key_values")
        if cache is None and self.sits(plan, prompt.device):
            return cast(Any, self).write(model_inputs, prompt, plan)
        if cache is None and self.records(prompt.device) and not plan.as_record:
            return self._on_pages(model_inputs, prompt, plan)
        if cache is None:
            if plan.record() is not None:
                encoded = self._encoded(model_inputs, plan)
                model_inputs["encoder_outputs"] = encoded
            # The last token is never read.
            cache = model.start_decoding(model_inputs, rows, plan.max_length - 1)
        elif cache.rows != len(prompt) or cache.length >= prompt.shape[1]:
            raise ValueError(
                f"past_key_values has {cache.length} tokens in {cache.rows} rows; decoder_input_ids must repeat them "
                f"and go on: here they are {prompt.shape[1]} in {len(prompt)} rows"
            )
        search = beam_search if plan.beams > 1 else sample
        output = run(search(cache, prompt, plan), model, cache)
        if encoded is not None:
            output.encoder_attentions, output.encoder_hidden_states = encoded.attentions, encoded.hidden_states
            output.cross_attentions = _over_all_frames(output.cross_attentions, encoded)
        return output if plan.as_record else output.sequences

    def warmup(
        self,
        batch_sizes: Iterable[int] = (1, 8),
        seconds: Iterable[float] = (10.0,),
        max_new_tokens: int | None = None,
    ) -> None:
        """Prepare, so that the first calls of `generate` take no longer than later ones.

        Silence is transcribed in batches of each size and length. Kernels are compiled for it and derived weights laid
        out. On a GPU the encoder is recorded for each of these batches that has few frames (see `RecordedEncoder`), and
        the steps of greedy search, and of the search that the model's own parameters ask for, for these sizes and what
        batches shrink to as their texts end, with memory for texts of `max_new_tokens` tokens of so much audio. Nothing
        is done twice: a further call prepares what it asks for beyond the former. Where parameters are written to or
        replaced, or the model is moved, what was prepared is made again when it is needed.

        Args:
            batch_sizes: utterances at once.
            seconds: of audio in each.
            max_new_tokens: of a text; by default what the model's own parameters say.

        Raises:
            ValueError: a size or length that is not positive.
        """
        sizes, lengths = sorted(set(batch_sizes), reverse=True), sorted(set(seconds), reverse=True)
        if not all(size > 0 for size in (*sizes, *lengths)):
            raise ValueError(f"batch_sizes and seconds must be positive, not {sizes} and {lengths}")
        # The largest first: what there is room for then needs no more.
        for rows in sizes:
            for duration in lengths:
                silence = self.silence(rows, duration)
                if serves(cast(Any, self).device):
                    self.record_steps(silence, max_new_tokens)
                self.generate(**silence, max_new_tokens=2)

    def silence(self, rows: int, seconds: float) -> dict[str, Any]:
        """The inputs of `generate` for so many utterances of silence."""
        raise NotImplementedError

    def record_steps(self, inputs: dict[str, Any], max_new_tokens: int | None) -> None:
        """Record the steps that `generate` with these inputs may come to; nothing where it records none."""

    def sits(self, plan: Plan, device: torch.device) -> bool:
        """Whether a plan is carried out on the device alone, by steps that are recorded (see `Seats`)."""
        return self.records(device) and graphable(plan)

    def records(self, device: torch.device) -> bool:
        """Whether steps of the decoder over pages are recorded, as the model is. float64 has no kernels."""
        model = cast(Any, self)
        if not (hasattr(model, "write") and serves(device) and model.dtype in _OF_KERNELS):
            return False
        return not (model.training or torch.is_autocast_enabled(device.type))

    def planned(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Iterable[LogitsRule] | None = None,
        stopping_criteria: Iterable[StoppingCriterion] | None = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        streamer: Streamer | None = None,
        use_model_defaults: bool | None = None,
        **kwargs: Any,
    ) -> tuple[GenerationConfig, dict[str, Any], torch.Tensor, Plan]:
        """What `generate` would do with these arguments, before anything is computed: the parameters, the inputs of the
        model, the prompt (B, n) int64 and the plan. Raises as `generate`."""
        config = generation_config if generation_config is not None else GenerationConfig()
        own = self.generation_config
        if use_model_defaults is False:
            own = GenerationConfig(**{name: getattr(own, name) for name in _SPECIAL_TOKENS})
        config = config.filled_from(own)
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
        return config, model_inputs, prompt, plan

    def compute_transition_scores(
        self,
        sequences: torch.Tensor,
        scores: tuple[torch.Tensor, ...],
        beam_indices: torch.Tensor | None = None,
        normalize_logits: bool = False,
    ) -> torch.Tensor:
        """The score of each new token of `generate`'s sequences: (R, new tokens), 0 behind the end of a beam's.

        Args:
            sequences, scores, beam_indices: of the record that `generate` returned with output_scores.
            normalize_logits: give log-probabilities, where the scores are logits.
        """
        steps = torch.stack(scores, 1)  # (rows, steps, vocabulary)
        if normalize_logits:
            steps = steps.log_softmax(-1)
        if beam_indices is None:
            rows = torch.arange(len(sequences), device=sequences.device)[:, None].expand(-1, len(scores))
        else:
            rows = beam_indices[:, : int((beam_indices != -1).sum(1).max())]
        tokens = sequences[:, sequences.shape[1] - rows.shape[1] :]
        there = rows != -1
        step = torch.arange(rows.shape[1], device=rows.device)
        return steps[rows.clamp(min=0), step, tokens].masked_fill(~there, 0.0)

    def _on_pages(self, model_inputs: dict[str, Any], prompt: torch.Tensor, plan: Plan) -> torch.Tensor:
        """The sequences that a search finds, by steps that are recorded (see `RecordedStep`)."""
        model = cast(Any, self)
        cache = model.start_on_pages(model_inputs, max(plan.beams, plan.returned), plan.max_length - 1)
        try:
            search = beam_search if plan.beams > 1 else sample
            return run(search(cache, prompt, plan), model, cache).sequences
        finally:
            cache.free()

    def _encoded(self, model_inputs: dict[str, Any], plan: Plan) -> BaseModelOutput:
        """The encoder's output, that which was given or one with all that the record asks for."""
        given = model_inputs.get("encoder_outputs")
        if given is None:
            return cast(StepModel, self).encode(model_inputs, plan.record_states, plan.record_attentions)
        return given if isinstance(given, BaseModelOutput) else BaseModelOutput(*given[:3])

    def _custom(
        self,
        loop: Callable[..., Any],
        model_inputs: dict[str, Any],
        prompt: torch.Tensor,
        plan: Plan,
        config: GenerationConfig,
    ) -> Any:
        rows = max(plan.beams, plan.returned)
        model_inputs["encoder_outputs"] = self._encoded(model_inputs, plan)
        del model_inputs[self.main_input_name]
        return loop(
            self,
            prompt.repeat_interleave(rows, 0),
            logits_processor=RuleList(plan.rules),
            stopping_criteria=CriterionList(plan.criteria, plan.eos, plan.max_length),
            generation_config=config.filled_from(GenerationConfig(**GenerationConfig.DEFAULTS)),
            **model_inputs,
        )

    def _assisted(
        self, assistant: Any, model_inputs: dict[str, Any], prompt: torch.Tensor, plan: Plan, config: GenerationConfig
    ) -> Any:
        if len(prompt) > 1 or plan.beams > 1 or plan.returned > 1:
            raise ValueError("an assistant_model serves one utterance, with num_beams=1 and num_return_sequences=1")
        if plan.record() is not None or "past_key_values" in model_inputs:
            raise ValueError(
                "output_attentions, output_hidden_states and past_key_values are not served with an assistant_model"
            )
        sizes = [getattr(getattr(model, "config", None), "vocab_size", None) for model in (self, assistant)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"the assistant_model has a vocabulary of {sizes[1]} tokens, the model one of {sizes[0]}")
        heard = {name: value for name, value in model_inputs.items() if name != "encoder_outputs"}
        if (encoded := heard.pop("assistant_encoder_outputs", None)) is not None:
            heard["encoder_outputs"] = encoded
            model_inputs.pop("assistant_encoder_outputs")
        drafter = Drafter(assistant, heard, config, plan)
        model = cast(StepModel, self)
        cache = model.start_decoding(model_inputs, 1, plan.max_length)
        output = speculate(model, cache, prompt, plan, drafter)
        return output if plan.as_record else output.sequences

    def _model_inputs(self, inputs: torch.Tensor | None, given: dict[str, Any]) -> dict[str, Any]:
        """The inputs of the model by name, the main one among them."""
        named = {name: value for name, value in given.items() if value is not None}
        if inputs is not None:
            if self.main_input_name in named:
                raise ValueError(f"the audio is given twice: as the first argument and as {self.main_input_name}")
            named[self.main_input_name] = inputs
        forward = inspect.signature(self.forward).parameters.keys()  # type: ignore[attr-defined]
        taken = (forward | {"decoder_input_ids", *_OF_GENERATE, *self.ignored_inputs}) - _ONLY_OF_FORWARD
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
        elif audio is None and "past_key_values" in model_inputs:
            audio = model_inputs["past_key_values"].cross_keys[0]
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


def _over_all_frames(steps: tuple[Tensors, ...] | None, encoded: BaseModelOutput) -> tuple[Tensors, ...] | None:
    """Cross-attention weights with those of the frames that no utterance has, and that decoding left out."""
    if steps is None:
        return None
    frames = cast(torch.Tensor, encoded.last_hidden_state).shape[1]
    return tuple(tuple(torch.nn.functional.pad(w, (0, frames - w.shape[-1])) for w in layers) for layers in steps)


def _each(limit: Any) -> list[int] | None:
    """The limits of each utterance; None where there is one for all."""
    if isinstance(limit, torch.Tensor):
        limit = limit.tolist()  # a number where it has no dimension
    return list(limit) if isinstance(limit, list | tuple) else None


_ONLY_OF_FORWARD = frozenset({"labels", "decoder_inputs_embeds", "decoder_position_ids", "return_dict"})
"""Inputs of a model's `forward` that `generate` would not honour."""

_OF_KERNELS = (torch.float32, torch.bfloat16, torch.float16)

_OF_GENERATE = frozenset({"past_key_values", "assistant_encoder_outputs"})

_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")

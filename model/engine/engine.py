"""The engine: sequences in, text deltas out, one step at a time. Single-threaded.

    schedule -> embed new images -> run the decoder -> sample -> accept tokens

A step that fails ends the sequences it was computing and no others.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from model.engine.block_manager import BlockManager
from model.engine.config import EngineConfig
from model.engine.detokenizer import Detokenizer
from model.engine.kv_cache import KVCache
from model.engine.request import Alternative, FinishReason, SamplingParams, TextDelta, TokenLogprob
from model.engine.runner import Runner
from model.engine.sampler import Sample, sample
from model.engine.scheduler import Chunk, Scheduler
from model.engine.sequence import Sequence
from model.errors import ModelError, RequestError
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.processing import Processor, PromptInputs
from model.phi3v.rope import LongRope

logger = logging.getLogger(__name__)

Key = tuple[int, int]  # request id and index of the answer


class StepFailedError(ModelError):
    """The step that was computing this answer failed."""


@dataclass(frozen=True)
class Output:
    """What a step yields for one sequence: a delta, or the error that ended it."""

    key: Key
    result: TextDelta | ModelError


class Engine:
    """Continuous batching over one model.

    Args:
        model: the network, in evaluation mode, on its device.
        processor: of the same checkpoint.
        stop_ids: tokens that end an answer.
        config: sizes.
    """

    def __init__(
        self,
        model: Phi3VForCausalLM,
        processor: Processor,
        stop_ids: frozenset[int],
        config: EngineConfig,
    ) -> None:
        self.config = config
        self.processor = processor
        self._vocabulary = model.config.vocab_size
        self._stop_ids = frozenset(i for i in stop_ids if i < self._vocabulary)
        weight = model.model.embed_tokens.weight
        device = weight.device
        cache_dtype = torch.float32 if device.type == "cpu" else weight.dtype
        rope = LongRope(model.config, device)
        cache = KVCache(model.config, config, cache_dtype, str(device))
        self.blocks = BlockManager(config.num_blocks, config.block_size)
        self.scheduler = Scheduler(config, self.blocks, rope)
        self._runner = Runner(model, cache, rope)
        self._sequences: dict[Key, Sequence] = {}

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return self.scheduler.has_work

    def check(self, params: SamplingParams) -> None:
        """Raise RequestError for parameters that do not fit this checkpoint. Any thread."""
        named = {"logit_bias": params.logit_bias, "stop_token_ids": params.stop_token_ids}
        for field, token_ids in named.items():
            for token_id in token_ids:
                if not 0 <= token_id < self._vocabulary:
                    raise RequestError(
                        f"{field} names token {token_id}; ids go from 0 to {self._vocabulary - 1}",
                        (field,),
                        token_id,
                    )

    def add(self, request_id: int, inputs: PromptInputs, params: SamplingParams) -> None:
        """Queue the ``n`` answers of a request; the prompt's length has been checked."""
        room = self.config.max_model_len - len(inputs.token_ids)
        wanted = params.max_tokens or self.config.default_max_tokens
        own_stops = () if params.ignore_eos else self._stop_ids
        # A stop string that names a control token never shows in the text; its id ends the answer.
        named = {self.processor.tokenizer.special_id(string) for string in params.stop} - {None}
        stop_ids = frozenset([*own_stops, *params.stop_token_ids, *named])
        for index in range(params.n):
            sequence = Sequence(
                (request_id, index),
                inputs,
                params,
                min(wanted, room),
                stop_ids,
                Detokenizer(self.processor.tokenizer, params.stop),
            )
            self._sequences[sequence.key] = sequence
            self.scheduler.add(sequence)

    def abort(self, request_id: int) -> None:
        """Drop what is left of a request; its blocks are free at once."""
        for key in [key for key in self._sequences if key[0] == request_id]:
            self.scheduler.finish(self._sequences.pop(key))

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Compute one batch and return what it yields, in no particular order."""
        chunks = self.scheduler.schedule()
        chunks, failed = self._embed_images(chunks)
        if not chunks:
            return failed
        try:
            logits_SV = self._runner.run(chunks)
            sampling = [chunk.sequence for chunk in chunks if chunk.samples]
            samples = sample(logits_SV, sampling) if sampling else []
        except Exception as error:
            logger.exception("a step failed; its %d sequences are ended", len(chunks))
            return failed + [self._fail(chunk.sequence, error) for chunk in chunks]
        for chunk in chunks:
            chunk.sequence.num_computed = chunk.end
        return failed + [
            Output(sequence.key, self._accept(sequence, chosen))
            for sequence, chosen in zip(sampling, samples, strict=True)
        ]

    def _embed_images(self, chunks: list[Chunk]) -> tuple[list[Chunk], list[Output]]:
        """Run the tower where it is needed; a failing image ends its own sequence only."""
        failed = []
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.image is None:
                continue
            try:
                self._runner.embed_image(sequence)
            except Exception as error:
                logger.exception("the vision tower failed; its sequence is ended")
                failed.append(self._fail(sequence, error))
        lost = {output.key for output in failed}
        return [chunk for chunk in chunks if chunk.sequence.key not in lost], failed

    def _fail(self, sequence: Sequence, error: Exception) -> Output:
        self._sequences.pop(sequence.key)
        self.scheduler.finish(sequence)
        return Output(sequence.key, StepFailedError(f"the engine failed at this answer: {error}"))

    def _accept(self, sequence: Sequence, chosen: Sample) -> TextDelta:
        """Append a token, turn it into text, and finish the sequence when it is time."""
        sequence.append(chosen.token_id)
        reason: FinishReason | None = None
        text, stopped = "", False
        if chosen.token_id in sequence.stop_ids:
            reason = "stop"
        else:
            text, stopped = sequence.detokenizer.add(chosen.token_id)
            if not stopped and sequence.num_output >= sequence.max_tokens:
                reason = "length"
        if reason is not None:
            rest, stopped = sequence.detokenizer.finish()
            text += rest
        if stopped:
            reason = "stop"
        if reason is not None:
            self._sequences.pop(sequence.key)
            self.scheduler.finish(sequence)
        logprobs = () if chosen.logprob is None else (self._describe(chosen, chosen.logprob),)
        return TextDelta(sequence.key[1], text, (chosen.token_id,), reason, logprobs)

    def _describe(self, chosen: Sample, logprob: float) -> TokenLogprob:
        def alternative(token_id: int, value: float) -> Alternative:
            tokenizer = self.processor.tokenizer
            text = tokenizer.token_text(token_id)
            raw = tokenizer.token_bytes(token_id) or text.encode()
            # JSON has no infinity; OpenAI's own floor for "never" is -9999.
            return Alternative(text, raw, max(value, -9999.0))

        return TokenLogprob(
            alternative(chosen.token_id, logprob), tuple(alternative(*pair) for pair in chosen.top)
        )

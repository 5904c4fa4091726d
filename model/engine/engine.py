"""The engine: sequences in, text deltas out, one step at a time. Single-threaded.

    run the vision tower for a while -> schedule -> run the decoder -> sample -> accept tokens

A fault ends only the sequences that caused it, as far as the engine can tell.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Messages
from functools import partial

import torch

from model.engine.config import EngineConfig
from model.engine.execution.device_clock import clock_of
from model.engine.execution.embedding_cache import EmbeddingCache
from model.engine.execution.runner import Runner, make_runner
from model.engine.execution.step_runner import StepRunner
from model.engine.execution.vision_runner import VisionRunner
from model.engine.grammars.grammar import Grammar, Grammars
from model.engine.kv_cache.base import PagedCache
from model.engine.kv_cache.choice import make_kv_cache
from model.engine.policy import GRAMMAR_PATIENCE, Policy
from model.engine.request import Output, Result, SamplingParams, SequenceKey
from model.engine.sampling.acceptance import Acceptance
from model.engine.sampling.drawing import make_draw
from model.engine.sampling.token_masks import TokenMasks
from model.engine.scheduling.block_manager import BlockManager
from model.engine.scheduling.chunk import Chunk
from model.engine.scheduling.pacing import Pacing, pauses_on
from model.engine.scheduling.prefix_hash import salt_digest
from model.engine.scheduling.scheduler import Scheduler
from model.engine.scheduling.sequence import Sequence
from model.engine.scheduling.sequence_factory import SequenceFactory
from model.engine.stats import Diagnostics, Stats, Totals
from model.errors import ModelError, StepFailedError
from model.phi3v.decoder import Decoder
from model.phi3v.inputs.chat import Message
from model.phi3v.inputs.processing import Processor, PromptInputs, Seen
from model.phi3v.network import Network
from model.phi3v.rope import LongRope

logger = logging.getLogger(__name__)

TOWER_SECONDS = 0.25  # per step without running streams; longer would delay aborts

MakeRunner = Callable[[Decoder, PagedCache, LongRope, Policy], Runner]


class Engine:
    """Continuous batching over one model.

    Args:
        network: the model, on its device.
        processor: of the same checkpoint.
        stop_ids: tokens that end an answer.
        config: options and sizes.
        make_runner: creates the decoder's runner.
        pacing: decides how much prefill a step takes; by default it learns from measured times.
    """

    def __init__(
        self,
        network: Network,
        processor: Processor,
        stop_ids: frozenset[int],
        config: EngineConfig,
        make_runner: MakeRunner = make_runner,
        pacing: Pacing | None = None,
    ) -> None:
        self.config = config
        self.network = network
        self.processor = processor
        self._vocabulary = network.config.vocab_size
        self.stop_ids = frozenset(i for i in stop_ids if i < self._vocabulary)
        device = network.decoder.device
        rope = LongRope(network.config, device)
        decoder = network.decoder
        cache = make_kv_cache(
            network.config, config, network.dtype, decoder.layer_devices, decoder.fuses_attention
        )
        policy = Policy.of(config)
        self._make_sequences = SequenceFactory(processor.tokenizer, self.stop_ids, config, policy)
        self.blocks = BlockManager(config.num_blocks, config.block_size, policy.prefix_caching)
        pauses = pauses_on(device.type)
        self._pacing = pacing or Pacing(config.prefill_chunk, policy.fixed_chunks, pauses)
        runner = make_runner(decoder, cache, rope, policy)
        self.scheduler = Scheduler(
            config, policy, self.blocks, rope, self._pacing, cache.copy_block, runner.guess_limit
        )
        self._kv_cache_kind, self._graph_rows = type(cache).__name__, runner.graph_rows
        embeddings = EmbeddingCache(config.embedding_cache_bytes)
        clock = clock_of(device)
        self.vision = VisionRunner(network.vision, embeddings, policy.single_images, clock)
        max_sequences = config.max_num_seqs + config.max_waiting
        self._grammars = Grammars(
            processor.tokenizer, self._vocabulary, self.stop_ids, max_sequences
        )
        token_masks = TokenMasks(
            config.max_num_seqs, self._vocabulary, device, policy.grammar_patience
        )
        draw = make_draw(decoder.fuses_attention, self._vocabulary)
        self._compute = StepRunner(runner, token_masks, draw, clock)
        self._sequences: dict[SequenceKey, Sequence] = {}
        self._totals = Totals()
        self._acceptance = Acceptance(
            processor.tokenizer,
            self.scheduler,
            self._totals,
            jump_ahead=policy.jump_ahead,
            patience=policy.grammar_patience,
        )

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return self.scheduler.has_work

    def check(self, params: SamplingParams) -> None:
        """Raise RequestError for parameters that do not fit this checkpoint. Any thread."""
        params.check_tokens(self._vocabulary)

    def prepare(
        self, messages: Messages[Message], params: SamplingParams
    ) -> tuple[PromptInputs, Grammar | None]:
        """Prepare the prompt and compile the grammar, for ``add``. Slow; call from any thread.

        Raises:
            RequestError: the messages or the grammar cannot be served.
            OverloadedError: the grammars in use take too much memory.
        """
        grammar = self.compile(params)
        keep = self.config.kept_prompt(params.truncate_prompt_tokens, params.max_tokens)
        draft = self.processor.draft(messages, self.config.max_model_len - 1, keep)
        return draft.finish(self.seen(params.cache_salt)), grammar

    def seen(self, salt: str) -> Seen:
        """Finds the images that requests with this cache salt need not prepare again. Any thread."""
        return partial(self.vision.cache.lend, salt_digest(salt))

    def compile(
        self, params: SamplingParams, unwanted: threading.Event | None = None
    ) -> Grammar | None:
        """Compile the grammar of ``params``, if any. Any thread; see ``Grammars.compile``."""
        if params.grammar is None:
            return None
        return self._grammars.compile(params.grammar, params.cache_salt, unwanted)

    def close(self) -> None:
        """End the grammars' processes."""
        self._grammars.close()

    def stats(self) -> Stats:
        """Current state and totals. Any thread."""
        scheduler, blocks, vision = self.scheduler, self.blocks, self.vision
        return Stats(
            running=len(scheduler.running),
            waiting=len(self._sequences) - len(scheduler.running),
            blocks_used=blocks.num_blocks - blocks.num_free,
            blocks_free=blocks.num_free,
            blocks_cached=blocks.num_cached,
            block_size=blocks.block_size,
            preemptions=scheduler.num_preemptions,
            regime_recomputes=scheduler.num_crossings,
            images_computed=vision.num_images,
            embedding_hits=vision.cache.num_hits,
            embedding_bytes=vision.cache.num_bytes,
            totals=self._totals,
        )

    def describe(self) -> Diagnostics:
        """The implementations in use, and what the engine holds. Any thread."""
        return Diagnostics(
            decoder=type(self.network.decoder).__name__,
            kv_cache=self._kv_cache_kind,
            graph_rows=self._graph_rows,
            sequences=len(self._sequences),
            blocks_used=self.blocks.num_blocks - self.blocks.num_free,
        )

    def reset_totals(self) -> None:
        """Reset all counters."""
        self._totals.reset()
        self.vision.num_images = 0

    def add(
        self,
        request_id: int,
        inputs: PromptInputs,
        params: SamplingParams,
        arrived: float | None = None,
        grammar: Grammar | None = None,
        caller: str = "",
    ) -> None:
        """Queue the ``n`` sequences of a request; the caller has checked the prompt's length.

        Args:
            request_id: identifies the sequences, together with their index.
            inputs: the prompt.
            params: sampling parameters.
            arrived: when the request arrived, by ``time.perf_counter``; default: now.
            grammar: the compiled grammar of ``params``, if any.
            caller: among whose waiting requests the priority counts.
        """
        arrived = time.perf_counter() if arrived is None else arrived
        for sequence in self._make_sequences(request_id, inputs, params, arrived, grammar, caller):
            self._sequences[sequence.key] = sequence
            self.scheduler.add(sequence)

    def abort(self, request_id: int) -> None:
        """Abort a request's unfinished sequences and free their blocks at once."""
        # Followers first, because finishing their leader would queue them.
        for key in reversed([key for key in self._sequences if key[0] == request_id]):
            self._finish(self._sequences[key], "abort")

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Run one step; returns its outputs in no particular order."""
        outputs = self._catch_up() + self._run_vision()
        chunks = self.scheduler.schedule()
        if not chunks:
            self._wait_for_grammars()
            return outputs
        outputs += self._begin(chunks, time.perf_counter())
        chunks = [chunk for chunk in chunks if chunk.sequence.key in self._sequences]
        computed, failed = self._compute(chunks)
        now = time.perf_counter()
        if failed:
            self._totals.failed_steps += 1
        # Waiting for grammars would distort the measurement.
        elif not any(chunk.sequence.is_late for chunk in chunks):
            self.scheduler.measured(chunks, self._compute.seconds)
        outputs += [self._fail(chunk.sequence, error) for chunk, error in failed]
        until = self._acceptance.announce(computed)
        for chunk, samples in computed:
            # If nothing was sampled (the grammar is late), compute the last token again.
            unsampled = chunk.num_sampled > 0 and not samples
            self.scheduler.computed(chunk.sequence, chunk.end - unsampled)
            if samples:
                accept = partial(self._acceptance, chunk, samples, now, until)
                outputs += self._accept(chunk.sequence, accept)
        return outputs

    def _begin(self, chunks: list[Chunk], now: float) -> list[Output]:
        """Start sequences that are computed for the first time; returns outputs of those that failed."""
        failed: list[Output] = []
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.begun_at is None:
                sequence.begun_at = now
                self._totals.queued.observe(now - sequence.arrived)
                failed += self._accept(sequence, sequence.begin_grammar)
        return failed

    def _catch_up(self) -> list[Output]:
        """Resume sequences whose late grammars have caught up."""
        outputs: list[Output] = []
        for sequence in [each for each in self._sequences.values() if each.is_late]:
            outputs += self._accept(sequence, partial(self._acceptance.resume, sequence))
        return outputs

    def _wait_for_grammars(self) -> None:
        """Wait for a late grammar, if there is one; there is nothing else to compute."""
        for sequence in self._sequences.values():
            if sequence.is_late and sequence.grammar_state is not None:
                sequence.grammar_state.wait(time.monotonic() + GRAMMAR_PATIENCE)
                return

    def _run_vision(self) -> list[Output]:
        """Run the vision tower for waiting sequences, within the time that running streams can spare."""
        running = self.scheduler.running
        waiting = [sequence for sequence in running if sequence.unseen_images]
        if not waiting:
            return []
        num_decoding = sum(sequence.is_decoding for sequence in running)
        spare = self._pacing.spare_seconds(num_decoding, len(waiting))
        failures = self.vision.advance(waiting, TOWER_SECONDS if spare is None else spare)
        self._totals.failed_steps += bool(failures)
        return [self._fail(sequence, error) for sequence, error in failures]

    def _accept(self, sequence: Sequence, accept: Callable[[], Result | None]) -> list[Output]:
        """Call ``accept`` to append tokens to a sequence, and finish the sequence if it ends."""
        try:
            result = accept()
        except Exception as error:
            logger.exception("failed to process sampled tokens")
            self._totals.failed_steps += 1
            return [self._fail(sequence, error)]
        if result is None:
            return []
        reason = "error" if isinstance(result, ModelError) else result.finish_reason
        if reason is not None:
            self._finish(sequence, reason)
        return [Output(sequence.key, result)]

    def _fail(self, sequence: Sequence, error: Exception) -> Output:
        self._finish(sequence, "error")
        failed = StepFailedError()
        failed.__cause__ = error  # for the log
        return Output(sequence.key, failed)

    def _finish(self, sequence: Sequence, reason: str) -> None:
        """Remove a sequence and free its blocks at once."""
        del self._sequences[sequence.key]
        self.scheduler.finish(sequence)
        if sequence.grammar_state is not None:
            sequence.grammar_state.close()
        self._totals.finished[reason] += 1
        if reason in ("stop", "length"):
            self._totals.e2e.observe(sequence.newest_at - sequence.arrived)

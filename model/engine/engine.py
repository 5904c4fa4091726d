"""The engine: sequences in, text deltas out, one step at a time. Single-threaded.

    run the vision tower for a while -> schedule -> run the decoder -> sample -> accept tokens

A fault ends the sequences it is due to, as far as that can be told, and no others.
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
from model.engine.sampling.token_masks import TokenMasks
from model.engine.scheduling.block_manager import BlockManager
from model.engine.scheduling.pacing import Pacing
from model.engine.scheduling.scheduler import Chunk, Scheduler
from model.engine.scheduling.sequence import Sequence
from model.engine.scheduling.sequence_factory import SequenceFactory
from model.engine.stats import Diagnostics, Stats, Totals
from model.errors import ModelError, StepFailedError
from model.phi3v.decoder import Decoder
from model.phi3v.inputs.chat import Message
from model.phi3v.inputs.processing import Processor, PromptInputs
from model.phi3v.network import Network
from model.phi3v.rope import LongRope

logger = logging.getLogger(__name__)

TOWER_SECONDS = 0.25  # per step when nobody is stalled, so that an abort is heard soon

MakeRunner = Callable[[Decoder, PagedCache, LongRope, Policy, int], Runner]


class Engine:
    """Continuous batching over one model.

    Args:
        network: the model, on its device.
        processor: of the same checkpoint.
        stop_ids: tokens that end an answer.
        config: sizes.
        make_runner: makes what runs the decoder.
        pacing: how much a step takes on; learned from the clock by default.
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
        cache = make_kv_cache(network.config, config, network.dtype, network.decoder.layer_devices)
        policy = Policy.of(config)
        self._make_sequences = SequenceFactory(processor.tokenizer, self.stop_ids, config, policy)
        self.blocks = BlockManager(config.num_blocks, config.block_size, policy.prefix_caching)
        self._pacing = pacing or Pacing(config.prefill_chunk, policy.fixed_chunks)
        self.scheduler = Scheduler(
            config, policy, self.blocks, rope, self._pacing, cache.copy_block
        )
        max_blocks = self.blocks.blocks_for(config.max_model_len)
        runner = make_runner(network.decoder, cache, rope, policy, max_blocks)
        self._kv_cache_kind, self._graph_rows = type(cache).__name__, runner.graph_rows
        embeddings = EmbeddingCache(config.embedding_cache_bytes)
        self.vision = VisionRunner(network.vision, embeddings, policy.single_images)
        max_sequences = config.max_num_seqs + config.max_waiting
        self._grammars = Grammars(
            processor.tokenizer, self._vocabulary, self.stop_ids, max_sequences
        )
        token_masks = TokenMasks(
            config.max_num_seqs, self._vocabulary, device, policy.grammar_patience
        )
        self._compute = StepRunner(runner, token_masks)
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
        """What ``add`` takes: the prompt, and the compiled grammar. Any thread; takes a while.

        Raises:
            RequestError: the messages or the grammar cannot be served.
            OverloadedError: there is no room for the grammar.
        """
        grammar = self.compile(params)
        return self.processor(messages, self.config.max_model_len - 1), grammar

    def compile(
        self, params: SamplingParams, unwanted: threading.Event | None = None
    ) -> Grammar | None:
        """The grammar of ``params``, if there is one. Any thread; see ``Grammars.compile``."""
        if params.grammar is None:
            return None
        return self._grammars.compile(params.grammar, params.cache_salt, unwanted)

    def close(self) -> None:
        """End the processes of grammars."""
        self._grammars.close()

    def stats(self) -> Stats:
        """What the engine is doing and has done. Any thread."""
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
        """What the engine runs on and holds. Any thread."""
        return Diagnostics(
            decoder=type(self.network.decoder).__name__,
            kv_cache=self._kv_cache_kind,
            graph_rows=self._graph_rows,
            sequences=len(self._sequences),
            blocks_used=self.blocks.num_blocks - self.blocks.num_free,
        )

    def reset_totals(self) -> None:
        """Count nothing of what was done so far."""
        self._totals.reset()
        self.vision.num_images = 0

    def add(
        self,
        request_id: int,
        inputs: PromptInputs,
        params: SamplingParams,
        arrived: float | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        """Queue the ``n`` answers of a request; the prompt's length has been checked.

        Args:
            request_id: names the answers, with their index.
            inputs: the prompt.
            params: how to answer.
            arrived: when the request came, by ``time.perf_counter``; now by default.
            grammar: of ``params``, where there is one.
        """
        arrived = time.perf_counter() if arrived is None else arrived
        for sequence in self._make_sequences(request_id, inputs, params, arrived, grammar):
            self._sequences[sequence.key] = sequence
            self.scheduler.add(sequence)

    def abort(self, request_id: int) -> None:
        """Drop what is left of a request; its blocks are free at once."""
        # Followers first: without their leader they would be queued.
        for key in reversed([key for key in self._sequences if key[0] == request_id]):
            self._finish(self._sequences[key], "abort")

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Compute one batch and return what it yields, in no particular order."""
        outputs = self._catch_up() + self._run_vision()
        chunks = self.scheduler.schedule()
        if not chunks:
            self._wait_for_grammars()
            return outputs
        started = time.perf_counter()
        outputs += self._begin(chunks, started)
        chunks = [chunk for chunk in chunks if chunk.sequence.key in self._sequences]
        computed, failed = self._compute(chunks)
        now = time.perf_counter()
        if failed:
            self._totals.failed_steps += 1
        elif not any(chunk.sequence.is_late for chunk in chunks):  # for which the step has waited
            num_decoding = sum(chunk.decodes for chunk in chunks)
            self._pacing.measured(now - started, num_decoding, sum(map(len, chunks)) - num_decoding)
        outputs += [self._fail(chunk.sequence, error) for chunk, error in failed]
        until = self._acceptance.announce(computed)
        for chunk, samples in computed:
            # The last token is computed again where nothing could be sampled after it.
            unsampled = chunk.num_sampled > 0 and not samples
            self.scheduler.computed(chunk.sequence, chunk.end - unsampled)
            if samples:
                accept = partial(self._acceptance, chunk, samples, now, until)
                outputs += self._accept(chunk.sequence, accept)
        return outputs

    def _begin(self, chunks: list[Chunk], now: float) -> list[Output]:
        """Take note of sequences that are computed for the first time; returns those that failed."""
        failed: list[Output] = []
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.begun_at is None:
                sequence.begun_at = now
                self._totals.queued.observe(now - sequence.arrived)
                failed += self._accept(sequence, sequence.begin_grammar)
        return failed

    def _catch_up(self) -> list[Output]:
        """Go on with the sequences whose grammars were late and are no more."""
        outputs: list[Output] = []
        for sequence in [each for each in self._sequences.values() if each.is_late]:
            outputs += self._accept(sequence, partial(self._acceptance.resume, sequence))
        return outputs

    def _wait_for_grammars(self) -> None:
        """Where there may be nothing else to do."""
        for sequence in self._sequences.values():
            if sequence.is_late and sequence.grammar_state is not None:
                sequence.grammar_state.wait(time.monotonic() + GRAMMAR_PATIENCE)
                return

    def _run_vision(self) -> list[Output]:
        """Run the tower for the sequences that wait for it, as long as others can spare."""
        running = self.scheduler.running
        waiting = [sequence for sequence in running if sequence.needs_tower]
        if not waiting:
            return []
        num_decoding = sum(sequence.is_decoding for sequence in running)
        spare = self._pacing.spare_seconds(num_decoding, len(waiting))
        failures = self.vision.advance(waiting, TOWER_SECONDS if spare is None else spare)
        self._totals.failed_steps += bool(failures)
        return [self._fail(sequence, error) for sequence, error in failures]

    def _accept(self, sequence: Sequence, accept: Callable[[], Result | None]) -> list[Output]:
        """Make an answer longer by what was sampled or is forced, and forget it where it ends."""
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
        """Forget a sequence; its blocks are free at once."""
        del self._sequences[sequence.key]
        self.scheduler.finish(sequence)
        if sequence.grammar_state is not None:
            sequence.grammar_state.close()
        self._totals.finished[reason] += 1
        if reason in ("stop", "length"):
            self._totals.e2e.observe(sequence.newest_at - sequence.arrived)

"""Appends sampled tokens to answers: tokens, text, and the reason if an answer ends."""

from __future__ import annotations

import time
from array import array

from model.engine.policy import MOST_TOGETHER
from model.engine.request import FinishReason, TextDelta, TokenLogprob
from model.engine.sampling.sampler import Sample
from model.engine.scheduling.chunk import Chunk
from model.engine.scheduling.scheduler import Scheduler
from model.engine.scheduling.sequence import Sequence
from model.engine.stats import Totals
from model.errors import ModelError
from model.phi3v.inputs.tokenizer import Phi3VTokenizer


class Acceptance:
    """Appends sampled and forced tokens to sequences.

    Args:
        tokenizer: of the checkpoint.
        scheduler: notified of positions computed by right guesses.
        totals: counters to update.
        jump_ahead: append tokens that a grammar forces without a step for each.
        patience: maximum seconds that a step waits for grammars.
    """

    def __init__(
        self,
        tokenizer: Phi3VTokenizer,
        scheduler: Scheduler,
        totals: Totals,
        jump_ahead: bool,
        patience: float,
    ) -> None:
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._totals = totals
        self._jump_ahead = jump_ahead
        self._patience = patience

    def announce(self, computed: list[tuple[Chunk, list[Sample]]]) -> float:
        """Send sampled tokens to the grammars' processes, before accepting them.

        Returns:
            deadline for their replies, by ``time.monotonic``.
        """
        for chunk, samples in computed:
            state = chunk.sequence.grammar_state
            if state is not None and samples and samples[0].token_id not in chunk.sequence.stop_ids:
                state.accept(samples[0].token_id)
        for chunk, _ in computed:
            if chunk.sequence.grammar_state is not None:
                chunk.sequence.grammar_state.send()
        return time.monotonic() + self._patience

    def __call__(
        self, chunk: Chunk, samples: list[Sample], now: float, until: float
    ) -> TextDelta | ModelError:
        """Append sampled tokens, as far as the guess was right, and the tokens they force.

        Args:
            chunk: of the step.
            samples: of its end, and of each guessed token.
            now: when the step ended, by ``time.perf_counter``.
            until: the deadline from ``announce``.
        """
        sequence = chunk.sequence
        if sequence.grammar_state is not None and sequence.grammar_state.error is not None:
            return sequence.grammar_state.error
        self._count(sequence, now)
        length, text = len(sequence), ""
        reason: FinishReason | None = None
        for number, chosen in enumerate(samples):
            more, reason = self._append(sequence, chosen.token_id, until)
            text += more
            if reason is not None or chunk.guess[number : number + 1] != (chosen.token_id,):
                break
        samples = samples[: len(sequence) - length]
        if chunk.guess:
            self._verified(chunk, len(samples) - 1)
        logprobs = tuple(self._logprobs(s, s.logprob) for s in samples if s.logprob is not None)
        return self._go_on(sequence, length, text, reason, logprobs, until)

    def resume(self, sequence: Sequence) -> TextDelta | ModelError | None:
        """Continue after a late grammar has caught up; None if that adds nothing."""
        state = sequence.grammar_state
        assert state is not None
        if not state.catch_up():
            return None
        length = len(sequence)
        text, reason = self._finish(sequence) if state.is_finished else ("", None)
        result = self._go_on(sequence, length, text, reason, (), time.monotonic())
        silent = isinstance(result, TextDelta) and not result.token_ids and reason is None
        return None if silent else result

    def _go_on(
        self,
        sequence: Sequence,
        length: int,
        text: str,
        reason: FinishReason | None,
        logprobs: tuple[TokenLogprob, ...],
        until: float,
    ) -> TextDelta | ModelError:
        """Append forced tokens; returns a delta of all tokens after the first ``length``."""
        while reason is None and len(sequence) - length < MOST_TOGETHER:
            forced = self._forced(sequence)
            if forced is None:
                break
            more, reason = self._append(sequence, forced, until, announced=False)
            text += more
            self._totals.forced_tokens += 1
        if sequence.grammar_state is not None and sequence.grammar_state.error is not None:
            return sequence.grammar_state.error
        token_ids = tuple(sequence.token_ids[length:])
        self._totals.generated_tokens += len(token_ids)
        cached = sequence.num_cached or 0
        return TextDelta(sequence.key[1], text, token_ids, reason, logprobs, cached)

    def _forced(self, sequence: Sequence) -> int | None:
        """The forced next token, if any; log probabilities require a step for each token."""
        state = sequence.grammar_state
        if state is None or not self._jump_ahead or sequence.params.logprobs is not None:
            return None
        return state.forced

    def _verified(self, chunk: Chunk, right: int) -> None:
        """Keep the positions that right guesses computed, and update the guess length."""
        self._scheduler.computed(chunk.sequence, chunk.end + right)
        self._totals.guessed_tokens += len(chunk.guess)
        self._totals.guessed_right += right
        if chunk.sequence.lookup is not None:
            chunk.sequence.lookup.learn(len(chunk.guess), right)

    def _count(self, sequence: Sequence, now: float) -> None:
        """Update totals for a token sampled now."""
        totals = self._totals
        if sequence.num_output == 0:
            totals.prompt_tokens += sequence.prompt_len
            totals.cached_tokens += sequence.num_cached or 0
            totals.ttft.observe(now - sequence.arrived)
        else:
            totals.itl.observe(now - sequence.newest_at)
        sequence.newest_at = now

    def _append(
        self, sequence: Sequence, token_id: int, until: float, announced: bool = True
    ) -> tuple[str, FinishReason | None]:
        """Append a token; returns its text, and the finish reason if the answer ends."""
        sequence.append(token_id)
        state = sequence.grammar_state
        if token_id in sequence.stop_ids:
            return self._finish(sequence)
        text, stopped = sequence.detokenizer.add(token_id)
        if stopped:
            return text, "stop"
        if state is not None:
            if not announced:
                state.accept(token_id)
            state.settle(until)
        if state is not None and state.is_finished:
            rest, reason = self._finish(sequence)
            return text + rest, reason
        if sequence.num_output >= sequence.max_tokens:
            rest, reason = self._finish(sequence, "length")
            return text + rest, reason
        return text, None

    @staticmethod
    def _finish(sequence: Sequence, reason: FinishReason = "stop") -> tuple[str, FinishReason]:
        """Flush the remaining text; the reason is ``stop`` if it completes a stop string."""
        rest, stopped = sequence.detokenizer.finish()
        return rest, "stop" if stopped else reason

    def _logprobs(self, chosen: Sample, logprob: float) -> TokenLogprob:
        pairs = [(chosen.token_id, logprob), *chosen.top]
        return TokenLogprob(
            array("i", [token_id for token_id, _ in pairs]),
            # JSON has no infinity; OpenAI's own floor for "never" is -9999.
            array("f", [max(value, -9999.0) for _, value in pairs]),
            self._tokenizer.describe,
        )

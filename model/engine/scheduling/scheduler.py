"""Chooses the tokens of the next step: decoding first, then prefill up to a budget.

First come, first served, but for priorities among the requests of a caller. A sequence is admitted when
blocks for all its tokens are free; the youngest is preempted (and recomputed later) when running
sequences need more. Cached prefixes are not recomputed. Handles neither tensors nor text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from model.engine.config import EngineConfig
from model.engine.policy import Policy
from model.engine.scheduling.block_manager import BlockManager
from model.engine.scheduling.chunk import Chunk
from model.engine.scheduling.pacing import Pacing
from model.engine.scheduling.sequence import Sequence, Status
from model.engine.text.lookup import LONGEST_GUESS
from model.phi3v.rope import LongRope


class Scheduler:
    """The waiting queue, the running sequences and their blocks.

    Args:
        config: sizes.
        policy: whether chunks are fixed.
        blocks: the KV blocks.
        rope: maps a length to its rope regime.
        pacing: limits the prefill of a step.
        copy_block: copies a block's content, (source, target).
        guess_limit: maximum number of tokens that each of some number of decoding sequences may
            guess; None for no limit. On a GPU guesses pay only in steps with a CUDA graph, so if
            there is a limit, steps with prefill guess nothing.
    """

    def __init__(
        self,
        config: EngineConfig,
        policy: Policy,
        blocks: BlockManager,
        rope: LongRope,
        pacing: Pacing,
        copy_block: Callable[[int, int], None],
        guess_limit: Callable[[int], int | None] = lambda rows: None,
    ) -> None:
        self._config = config
        self._policy = policy
        self._rope = rope
        self._pacing = pacing
        self._copy_block = copy_block
        self._guess_limit = guess_limit
        self.blocks = blocks
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission
        self.num_preemptions = 0
        self.num_crossings = 0

    @property
    def has_work(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence, or keep it until its leader has computed the prompt."""
        if sequence.leader is None:
            self._queue(sequence)
        else:
            sequence.status = Status.FOLLOWING
            sequence.leader.followers.append(sequence)

    def _queue(self, sequence: Sequence) -> None:
        """Append to the queue; a caller's sequences share their places by priority.

        So it delays no other caller. Sequences that have been computed in part keep their places.
        """
        self.waiting.append(sequence)
        place = len(self.waiting) - 1
        for index in range(place - 1, -1, -1):
            other = self.waiting[index]
            if other.caller != sequence.caller or other.begun_at is not None or other.block_table:
                continue
            if other.params.priority <= sequence.params.priority:
                return
            self.waiting[index], self.waiting[place] = sequence, other
            place = index

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        elif sequence.status is Status.FOLLOWING and sequence.leader is not None:
            sequence.leader.followers.remove(sequence)
        self._release_followers(sequence)
        sequence.status = Status.FINISHED
        sequence.images = ()
        self.blocks.release(sequence.block_table)

    def schedule(self) -> list[Chunk]:
        """The next step's chunks; empty only if all sequences wait for the vision tower or a grammar."""
        for sequence in list(self.running):
            if sequence.status is Status.RUNNING:
                self._choose_regime(sequence)
                self._make_room(sequence)
        taking_part = [sequence for sequence in self.running if not sequence.is_late]
        decoding = [sequence for sequence in taking_part if sequence.is_decoding]
        prefill: list[Chunk] = []
        num_prefilling = len(taking_part) - len(decoding) + len(self.waiting)
        budget = self._pacing.prefill_budget(len(decoding), num_prefilling)
        for sequence in taking_part:
            if not sequence.is_decoding and budget > 0:
                budget -= self._prefill(sequence, budget, prefill)
        while budget > 0 and self._admit():
            budget -= self._prefill(self.running[-1], budget, prefill)
        return self._decode(decoding, bool(prefill)) + prefill

    def measured(self, chunks: list[Chunk], seconds: float) -> None:
        """Let the pacing learn how long a step took; call before its tokens are accepted."""
        decoding = [len(chunk) for chunk in chunks if chunk.decodes]
        prefill_tokens = sum(map(len, chunks)) - sum(decoding)
        guessed_tokens = sum(decoding) - len(decoding)
        self._pacing.measured(seconds, len(decoding), prefill_tokens, guessed_tokens)

    def computed(self, sequence: Sequence, end: int) -> None:
        """Record that a sequence's keys and values are computed up to ``end``."""
        start, sequence.num_computed = sequence.num_computed, end
        if self.blocks.caching:
            size = self.blocks.block_size
            first, count = start // size, end // size
            hashes = sequence.hashes(count, size)
            for index in range(first, count):
                self.blocks.file(sequence.block_table[index], hashes[index])
        if end >= sequence.prompt_len:
            self._release_followers(sequence)

    def _decode(self, decoding: list[Sequence], with_prefill: bool) -> list[Chunk]:
        """Chunks of decoding sequences, with guesses within the step's spare tokens."""
        spare = self._pacing.spare_tokens(len(decoding))
        limit = self._guess_limit(len(decoding)) if decoding else None
        if limit is not None and with_prefill:
            limit = 0
        chunks = []
        for number, sequence in enumerate(decoding):
            guess: list[int] = []
            if sequence.lookup is not None and sequence.num_pending == 1:
                share = -(-spare // (len(decoding) - number))
                share = share if limit is None else min(share, limit)
                guess = sequence.lookup.guess(
                    sequence.token_ids, self._longest_guess(sequence, share)
                )
                spare -= len(guess)
                self.blocks.grow(sequence.block_table, len(sequence) + len(guess))
            chunks.append(Chunk(sequence, sequence.num_computed, len(sequence), tuple(guess)))
        return chunks

    def _longest_guess(self, sequence: Sequence, share: int) -> int:
        """Maximum number of guessed tokens: limited by answer length, rope regime, blocks and share."""
        length = len(sequence)
        most = min(share, sequence.max_tokens - sequence.num_output - 1, LONGEST_GUESS)
        while most > 0 and (
            self._rope.regime(length + most) is not sequence.regime
            or not self.blocks.can_grow(sequence.block_table, length + most)
        ):
            most -= 1
        return max(most, 0)

    def _prefill(self, sequence: Sequence, budget: int, chunks: list[Chunk]) -> int:
        """Add the sequence's next chunk of at most ``budget`` tokens; returns its length."""
        start = sequence.num_computed
        end = most = min(start + budget, sequence.computable_to)
        if self._policy.fixed_chunks:
            end = self._fixed_end(sequence)
        if end <= start or end > most:  # waits for the tower, or for a step with enough budget
            return 0
        chunks.append(Chunk(sequence, start, end))
        return end - start

    def _fixed_end(self, sequence: Sequence) -> int:
        """The end of a chunk, independent of the batch: fixed sizes, then single tokens."""
        start, size = sequence.num_computed, self._config.prefill_chunk
        if start >= sequence.prompt_len:
            return start + 1
        return min(start - start % size + size, sequence.prompt_len)

    def _choose_regime(self, sequence: Sequence) -> None:
        """Update the sequence's rope regime; if it changes, everything is recomputed."""
        regime = self._rope.regime(len(sequence))
        if regime is sequence.regime:
            return
        self.num_crossings += sequence.num_computed > 0
        self.blocks.release(sequence.block_table)
        sequence.change_regime(regime)
        self._find_prefix(sequence)

    def _find_prefix(self, sequence: Sequence) -> None:
        """Give a sequence without blocks the cached blocks of its prefix."""
        if not self.blocks.caching:
            return
        size = self.blocks.block_size
        full = (len(sequence) - 1) // size  # the last token is always computed, for its logits
        found = self.blocks.find(sequence.hashes(full, size))
        self.blocks.share(found)
        sequence.block_table += found
        sequence.num_computed = len(found) * size

    def _make_room(self, sequence: Sequence) -> None:
        """Allocate blocks for new tokens, preempting the youngest sequences (perhaps this one)."""
        while sequence.status is Status.RUNNING:
            if self.blocks.can_grow(sequence.block_table, len(sequence)):
                self.blocks.grow(sequence.block_table, len(sequence))
                return
            if not self._take_from_waiting(sequence):
                self._preempt(self.running[-1])

    def _take_from_waiting(self, but: Sequence) -> bool:
        """Free the blocks of the last waiting sequence that holds any; returns whether one did."""
        for sequence in reversed(self.waiting):
            if sequence.block_table and sequence is not but:
                self.blocks.release(sequence.block_table)
                sequence.num_computed = 0
                return True
        return False

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.blocks.release(sequence.block_table)
        sequence.num_computed = 0
        sequence.status = Status.WAITING
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _admit(self) -> bool:
        """Admit the oldest waiting sequence if it fits; returns whether it did."""
        if not self.waiting or len(self.running) >= self._config.max_num_seqs:
            return False
        sequence = self.waiting[0]
        self._choose_regime(sequence)
        if not sequence.block_table:
            self._find_prefix(sequence)
        while not self.blocks.can_grow(sequence.block_table, len(sequence)):
            if self.running or not self._take_from_waiting(sequence):
                self.blocks.release(sequence.block_table)
                sequence.num_computed = 0
                return False
        self.waiting.popleft()
        self.blocks.grow(sequence.block_table, len(sequence))
        if sequence.num_cached is None:
            sequence.num_cached = sequence.num_computed
        sequence.status = Status.RUNNING
        self.running.append(sequence)
        return True

    def _release_followers(self, leader: Sequence) -> None:
        """Queue a leader's followers; they share its blocks if the prompt is computed."""
        followers, leader.followers = leader.followers, []
        for follower in followers:
            follower.leader = None
            follower.status = Status.WAITING
            if leader.num_computed >= leader.prompt_len and leader.block_table:
                self._fork(leader, follower)
        self.waiting.extendleft(reversed(followers))

    def _fork(self, leader: Sequence, follower: Sequence) -> None:
        """Share the prompt's full blocks and copy the last one, which both will write to.

        The follower computes the prompt's last token itself, for its logits.
        """
        follower.regime = leader.regime
        follower.images = leader.images
        last = leader.prompt_len - 1
        full, rest = divmod(last, self.blocks.block_size)
        follower.block_table = leader.block_table[:full]
        self.blocks.share(follower.block_table)
        follower.num_computed = full * self.blocks.block_size
        if rest and self.blocks.num_free:
            copy = self.blocks.take()
            self._copy_block(leader.block_table[full], copy)
            follower.block_table.append(copy)
            follower.num_computed = last

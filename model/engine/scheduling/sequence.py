"""The engine's state of one sequence in flight: a prompt and one of its answers."""

from __future__ import annotations

import enum
import secrets

from torch import Tensor

from model.engine.grammars.grammar import Grammar
from model.engine.grammars.state import GrammarState
from model.engine.policy import MOST_TOGETHER
from model.engine.request import SamplingParams, SequenceKey
from model.engine.scheduling.prefix_hash import ImageSpan, prefix_hashes, salt_digest
from model.engine.scheduling.token_counts import Counts
from model.engine.text.detokenizer import Detokenizer
from model.engine.text.lookup import Lookup
from model.errors import ModelError
from model.phi3v.inputs.processing import IMAGE_TOKEN_ID, PromptInputs
from model.phi3v.rope import RopeRegime


class Status(enum.Enum):
    """State of a sequence; a preempted one is waiting again."""

    FOLLOWING = enum.auto()  # waits for its leader to compute the prompt
    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


class Sequence:
    """A prompt, the tokens generated after it, and the state of their computation.

    Attributes:
        token_ids: prompt, then generated tokens.
        num_computed: positions whose keys and values are computed.
        num_cached: prompt positions from the prefix cache; None before admission.
        block_table: its KV blocks, in order of position.
        image_span: positions of its image.
        image: crops of its image, until the tower has run.
        image_embedding: ``(image tokens, hidden)``, set by the tower.
        followers: sequences with the same prompt, which will share its blocks.
        leader: the sequence that computes its prompt.
        counts, output_counts: token counts of the whole sequence and of the answer.
        seed: for sampling.
        grammar: what the answer must match, if anything.
        grammar_state: state in the grammar, from the first step on.
        lookup: guesses its next tokens, if that is allowed.
        most_together: see ``Policy``.
        arrived, newest_at: arrival of its request and of its newest token, in seconds.
        begun_at: time of its first step, in seconds; None before.
        caller: among whose waiting sequences its priority counts.
    """

    def __init__(
        self,
        key: SequenceKey,
        inputs: PromptInputs,
        params: SamplingParams,
        max_tokens: int,
        stop_ids: frozenset[int],
        detokenizer: Detokenizer,
    ) -> None:
        self.key = key
        self.params = params
        self.max_tokens = max_tokens
        self.stop_ids = stop_ids
        self.detokenizer = detokenizer
        self.token_ids = list(inputs.token_ids)
        self.prompt_len = len(self.token_ids)
        self.image = inputs.image
        self._salt = salt_digest(params.cache_salt)
        self.image_span: ImageSpan | None = None
        if inputs.image is not None:
            start = self.token_ids.index(IMAGE_TOKEN_ID)
            end = start + inputs.image.num_tokens
            # Salted, because the embedding cache and the vision runner use it as a key too.
            self.image_span = ImageSpan(start, end, self._salt + inputs.image.digest)
        self.image_embedding: Tensor | None = None
        self.status = Status.WAITING
        self.followers: list[Sequence] = []
        self.leader: Sequence | None = None
        self.num_computed = 0
        self.num_cached: int | None = None
        self.block_table: list[int] = []
        self.regime = RopeRegime.SHORT
        self.counts = Counts(0)
        self.output_counts = Counts(self.prompt_len)
        self._hashes: list[bytes] = []
        seed = secrets.randbits(63) if params.seed is None else params.seed
        self.seed = seed + key[1]
        self.grammar: Grammar | None = None
        self.grammar_state: GrammarState | None = None
        self.lookup: Lookup | None = None
        self.most_together = MOST_TOGETHER
        self.arrived = self.newest_at = 0.0
        self.begun_at: float | None = None
        self.caller = ""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.prompt_len

    @property
    def num_pending(self) -> int:
        """Tokens to compute before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed

    def append(self, token_id: int) -> None:
        """Append a generated token."""
        self.token_ids.append(token_id)

    @property
    def is_decoding(self) -> bool:
        """Whether it is decoding, not prefilling: only one token is pending, or a few that were
        appended together.
        """
        together = self.num_computed >= self.prompt_len and self.num_pending <= self.most_together
        return self.num_pending == 1 or together

    def begin_grammar(self) -> ModelError | None:
        """Start following the grammar, if any; returns the error if that fails."""
        try:
            if self.grammar is not None:
                self.grammar_state = self.grammar.begin()
        except ModelError as error:
            return error
        return None

    @property
    def is_late(self) -> bool:
        """Whether its grammar takes so long that the others do not wait for it."""
        return self.grammar_state is not None and self.grammar_state.is_late

    @property
    def needs_tower(self) -> bool:
        """Whether it waits for its image's embedding."""
        span = self.image_span
        return span is not None and self.image_embedding is None and self.num_computed < span.end

    @property
    def computable_to(self) -> int:
        """Position up to which it can be computed now: at most to an image without embedding."""
        if self.needs_tower and self.image_span is not None:
            return self.image_span.start
        return len(self)

    def hashes(self, count: int, block_size: int) -> list[bytes]:
        """Prefix hashes of the first ``count`` blocks, which must be full."""
        return prefix_hashes(
            self._hashes,
            self.token_ids,
            self.image_span,
            self.regime,
            self._salt,
            block_size,
            count,
        )

    def change_regime(self, regime: RopeRegime) -> None:
        """Change the rope regime, which invalidates everything computed."""
        self.regime = regime
        self.num_computed = 0
        self._hashes.clear()

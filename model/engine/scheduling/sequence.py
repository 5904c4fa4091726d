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
    """Where a sequence is in its life; a preempted one waits again."""

    FOLLOWING = enum.auto()  # its leader computes the prompt first
    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


class Sequence:
    """A prompt and the tokens generated after it, and how far they are computed.

    Attributes:
        token_ids: prompt, then generated tokens.
        num_computed: positions whose keys and values are in the cache.
        num_cached: prompt positions that were found computed when it started; None before.
        block_table: its KV blocks, in order of position.
        image_span: where its image stands.
        image: its crops, until the tower has run.
        image_embedding: ``(image tokens, hidden)``, from then to the end.
        followers: sequences of the same prompt, which share its blocks once it is computed.
        leader: whose follower it is.
        counts, output_counts: of its tokens, and of those generated.
        seed: of its sampling.
        grammar: what it must match, if anything.
        grammar_state: how far it has come in that, from its first step on.
        lookup: guesses its next tokens, if it may be guessed.
        most_together: see ``Policy``.
        arrived, newest_at: when its request came and its newest token, in seconds.
        begun_at: when a step first computed some of it; None before.
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
            # The embedding cache goes by it too, and images on their way through the tower.
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
        """Take a sampled token."""
        self.token_ids.append(token_id)

    @property
    def is_decoding(self) -> bool:
        """Whether it is decoding, not prefilling: the next token is all that is missing, or a few
        that came together.
        """
        together = self.num_computed >= self.prompt_len and self.num_pending <= self.most_together
        return self.num_pending == 1 or together

    def begin_grammar(self) -> ModelError | None:
        """Have the grammar followed, if there is one; returns why that cannot be."""
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
        """Whether an image whose embedding is not there yet is to be computed."""
        span = self.image_span
        return span is not None and self.image_embedding is None and self.num_computed < span.end

    @property
    def computable_to(self) -> int:
        """How far it can be computed now: to its image where that waits for the tower."""
        if self.needs_tower and self.image_span is not None:
            return self.image_span.start
        return len(self)

    def hashes(self, count: int, block_size: int) -> list[bytes]:
        """Prefix hashes of its first ``count`` blocks, which must be full."""
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
        """Enter a rope regime, in which nothing is computed yet."""
        self.regime = regime
        self.num_computed = 0
        self._hashes.clear()

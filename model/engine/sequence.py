"""The engine's state of one answer in the making."""

from __future__ import annotations

import enum
import secrets
from collections import Counter

from torch import Tensor

from model.engine.block_manager import BlockTable
from model.engine.detokenizer import Detokenizer
from model.engine.request import SamplingParams
from model.phi3v.processing import IMAGE_TOKEN_ID, PromptInputs
from model.phi3v.rope import RopeRegime


class Status(enum.Enum):
    """Where a sequence is in its life; a preempted one waits again."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()


class Sequence:
    """One answer: prompt and generated tokens, and how far they are computed.

    Attributes:
        token_ids: prompt, then generated tokens.
        num_computed: positions whose keys and values are in the cache.
        block_table: its KV blocks, in order of position.
        image: its crops, until the tower has run.
        image_embedding: ``(image tokens, hidden)``, from then to the end.
        seed: of its sampling.
    """

    def __init__(
        self,
        key: tuple[int, int],
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
        self.image_start = self.token_ids.index(IMAGE_TOKEN_ID) if inputs.image else 0
        self.image_embedding: Tensor | None = None
        self.status = Status.WAITING
        self.num_computed = 0
        self.block_table = BlockTable()
        self.regime = RopeRegime.SHORT
        self.output_counts: Counter[int] = Counter()
        seed = secrets.randbits(63) if params.seed is None else params.seed
        self.seed = seed + key[1]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.prompt_len

    @property
    def num_pending(self) -> int:
        """Tokens to compute before the next one can be sampled; 1 while decoding."""
        return len(self.token_ids) - self.num_computed

    def append(self, token_id: int) -> None:
        """Take a sampled token."""
        self.token_ids.append(token_id)
        self.output_counts[token_id] += 1

    def reset(self) -> None:
        """Forget what was computed (preemption, or a crossing of the rope regimes)."""
        self.num_computed = 0

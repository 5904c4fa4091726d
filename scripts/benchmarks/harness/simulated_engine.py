"""An engine whose steps take as long as predicted for a card; only its clock is simulated.

The real ``Scheduler`` schedules real ``Sequence``s, and the real ``Pacing`` learns from the times, which
vary at random by a few percent. Nothing is computed, so tokens mean nothing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import pairwise

from model.demo import CHECKPOINT
from model.demo.random_checkpoint import PRESETS, config_for
from model.engine.config import GIB, EngineConfig
from model.engine.policy import Policy
from model.engine.request import SamplingParams
from model.engine.scheduling.block_manager import BlockManager
from model.engine.scheduling.chunk import Chunk
from model.engine.scheduling.pacing import Pacing
from model.engine.scheduling.scheduler import Scheduler
from model.engine.scheduling.sequence import Sequence
from model.engine.scheduling.sequence_factory import SequenceFactory
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.inputs.processing import PromptInputs
from model.phi3v.inputs.tokenizer import Phi3VTokenizer
from model.phi3v.rope import LongRope
from scripts.benchmarks.harness.cards import Card, ModelCosts, predict

OFFICIAL = Phi3VConfig(**config_for(PRESETS["full"], "official"))
COSTS = ModelCosts.of(OFFICIAL)
NOISE = 0.03  # standard deviation of a step's time
HOST_SECONDS, HOST_SECONDS_PER_ROW = 0.5e-3, 10e-6  # of scheduling, accepting and sending
LONGEST = 8192  # tokens of a sequence


@dataclass
class Answer:
    """One answer.

    Attributes:
        asked: when it was asked for, by the simulated clock.
        sequence: of the engine.
        stamps: when its tokens came.
    """

    asked: float
    sequence: Sequence
    stamps: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.stamps[0] - self.asked

    def gaps(self, since: float) -> list[float]:
        """Seconds between tokens, from the first one after ``since``."""
        pairs = pairwise(self.stamps)
        return [after - before for before, after in pairs if after >= since]


def prefill_chunk(card: Card) -> int:
    """The default on a card; see ``--prefill-chunk``."""
    return 8192 if card.memory >= 70 * GIB else 2048


class SimulatedEngine:
    """See the module.

    Args:
        card: the card.
        pacing: of the engine.
        launches: number of kernels of a step.
        seed: of the noise.

    Attributes:
        now: the simulated clock, in seconds.
    """

    def __init__(self, card: Card, pacing: Pacing, launches: int, seed: int) -> None:
        self._card = card
        self._launches = launches
        self._random = random.Random(seed)
        config = EngineConfig(
            LONGEST,
            num_blocks=80 * LONGEST // 16,  # more than any card has, so that nothing is preempted
            max_num_seqs=256,
            prefill_chunk=prefill_chunk(card),
            prefix_caching=False,
            prompt_lookup=False,
        )
        policy = Policy.of(config)
        blocks = BlockManager(config.num_blocks, config.block_size, policy.prefix_caching)
        self._scheduler = Scheduler(
            config, policy, blocks, LongRope(OFFICIAL), pacing, lambda source, target: None
        )
        tokenizer = Phi3VTokenizer(CHECKPOINT)
        self._make_sequences = SequenceFactory(tokenizer, frozenset(), config, policy)
        self._answers: dict[int, Answer] = {}
        self.now = 0.0

    def ask(self, prompt_tokens: int, asked: float | None = None) -> Answer:
        """Queue a prompt; it was asked for now, or a little earlier, during the step before."""
        number = len(self._answers)
        asked = self.now if asked is None else asked
        inputs = PromptInputs([number + 1] * prompt_tokens)
        (sequence,) = self._make_sequences(number, inputs, SamplingParams(), asked, None, "")
        self._scheduler.add(sequence)
        self._answers[number] = Answer(asked, sequence)
        return self._answers[number]

    def end(self, answer: Answer) -> None:
        """End an answer, as if its client had left."""
        self._scheduler.finish(answer.sequence)

    def step(self) -> None:
        """Run one step."""
        chunks = self._scheduler.schedule()
        assert chunks
        seconds = self._seconds(chunks) * max(self._random.gauss(1.0, NOISE), 0.5)
        self.now += seconds + HOST_SECONDS + HOST_SECONDS_PER_ROW * len(chunks)
        self._scheduler.measured(chunks, seconds)
        for chunk in chunks:
            self._scheduler.computed(chunk.sequence, chunk.end)
            if chunk.num_sampled:
                chunk.sequence.append(1)
                self._answers[chunk.sequence.key[0]].stamps.append(self.now)

    def _seconds(self, chunks: list[Chunk]) -> float:
        """Predicted time of a step: products with the weights, and then attention."""
        graph = all(chunk.is_text_token for chunk in chunks)
        flops = COSTS.token_flops * sum(map(len, chunks))
        flops += COSTS.head_flops * sum(chunk.num_sampled for chunk in chunks)
        products = predict(self._card, self._launches, COSTS.weight_bytes, flops, graph)
        keys = COSTS.kv_bytes * sum(chunk.end for chunk in chunks)
        pairs = sum(len(chunk) * (chunk.start + chunk.end) / 2 for chunk in chunks)
        return products + predict(self._card, 0, keys, COSTS.attention_flops * pairs, graph)

"""A long prompt beside running streams, on simulated cards: what pacing decides, before and after.

Nothing runs on a card: steps take as long as ``harness.cards`` predicts, with noise, and only the
scheduler and its pacing are real. "Before" is how pacing was until it told a step's fixed cost from the
cost per token; its cost per token is all that a step with prefill took longer, divided by its tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from model.engine.scheduling.pacing import GPU_PAUSES, SMALLEST_CHUNK, Pacing
from model.engine.scheduling.step_costs import mixed
from scripts.benchmarks.harness.cards import CARDS, Card
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.report import Figure, Panel, Report
from scripts.benchmarks.harness.simulated_engine import SimulatedEngine, prefill_chunk

NAMES = ("L4", "A100-80", "H100", "H200")
STREAMS = (1, 4, 15, 63)
PROMPT = 2400  # tokens, as many as a large picture
HELD = 500  # tokens that each stream holds when the first prompt comes
PROMPTS = 3  # one after the other; pacing has seen no long one before the first
MOST_TTFT = 2.5  # times the TTFT without streams
MOST_STEPS, MOST_SECONDS = 3, 0.05  # longest gap: the greater of both
KERNELS = 1250  # of a step of torch's operators
FUSED_KERNELS = 300  # of a step of our own kernels, at most

MakePacing = Callable[[int], Pacing]


def make_pacing(chunk: int) -> Pacing:
    """Pacing on GPUs, with the largest chunk as given."""
    return Pacing(chunk, pauses=GPU_PAUSES)


class CostPerToken(Pacing):
    """Pacing as it was before: no fixed cost, and a step with prefill takes twice as long."""

    _per_token: float | None = None

    def measured(
        self, seconds: float, num_decoding: int, prefill_tokens: int, guessed_tokens: int = 0
    ) -> None:
        """See ``Pacing``."""
        if prefill_tokens >= SMALLEST_CHUNK and not self._is_first:
            decode = self._decode(num_decoding) if num_decoding else None
            added = max(seconds - (decode or 0.0), seconds / 10)
            self._per_token = mixed(self._per_token, added / prefill_tokens)
        super().measured(seconds, num_decoding, prefill_tokens, guessed_tokens)

    def prefill_budget(self, num_decoding: int, num_prefilling: int) -> int:
        """See ``Pacing``."""
        spare = self.spare_seconds(num_decoding, num_prefilling)
        if spare is None or self._per_token is None:
            return self._prefill_chunk
        tokens = int(spare / self._per_token) // SMALLEST_CHUNK * SMALLEST_CHUNK
        return min(max(tokens, SMALLEST_CHUNK), self._prefill_chunk)


SIDES: dict[str, MakePacing] = {"before": CostPerToken, "after": make_pacing}


@dataclass(frozen=True)
class Outcome:
    """What prompts and streams wait for, in seconds.

    Attributes:
        alone: TTFT of a prompt without streams.
        ttft: longest TTFT of a prompt beside the streams.
        step: the streams' usual gap.
        gap: their longest gap while the prompts are computed.
    """

    alone: float
    ttft: float
    step: float
    gap: float

    @property
    def most_gap(self) -> float:
        """The longest gap that is allowed."""
        return max(MOST_STEPS * self.step, MOST_SECONDS)


def beside_streams(
    card: Card,
    streams: int,
    make: MakePacing = make_pacing,
    launches: int = FUSED_KERNELS,
    held_prompt: int = HELD - 20,
    seed: int = 0,
) -> Outcome:
    """Simulate long prompts beside streams.

    Args:
        card: the card.
        streams: how many.
        make: makes the pacing, which knows nothing when the streams begin.
        launches: number of kernels of a step.
        held_prompt: tokens of each stream's prompt; it generates the rest of the 500 before the first
            long prompt comes.
        seed: of the noise.
    """
    chunk = prefill_chunk(card)
    alone = SimulatedEngine(card, make(chunk), launches, seed)
    _first_token(alone, PROMPT)
    engine = SimulatedEngine(card, make(chunk), launches, seed)
    running = [engine.ask(held_prompt) for _ in range(streams)]
    while min(len(stream.sequence) for stream in running) < HELD:
        engine.step()
    step = statistics.median(running[-1].gaps(since=0.0)[-10:])
    ttfts = []
    begun = engine.now
    for number in range(PROMPTS):
        ttfts.append(_first_token(engine, PROMPT, step * number / PROMPTS))
        for _ in range(10):
            engine.step()
    gap = max(max(stream.gaps(begun)) for stream in running)
    return Outcome(_first_token(alone, PROMPT), max(ttfts), step, gap)


def _first_token(engine: SimulatedEngine, tokens: int, earlier: float = 0.0) -> float:
    """TTFT of a prompt that came a little earlier, during the step before."""
    answer = engine.ask(tokens, engine.now - earlier)
    while not answer.stamps:
        engine.step()
    engine.end(answer)
    return answer.ttft


def run(options: Options) -> Report:
    """See the module."""
    report = Report(
        "pacing",
        f"a prompt of {PROMPT} tokens beside streams of {HELD}; simulated, times are predictions",
        [
            "card",
            "kernels",
            "streams",
            "TTFT alone, ms",
            *(f"{what} {side}, ms" for what in ("TTFT", "longest gap") for side in SIDES),
        ],
    )
    kinds = [(name, kernels) for name in NAMES for kernels in (KERNELS, FUSED_KERNELS)]
    for name, kernels in tqdm(kinds, desc="pacing"):
        ratios: dict[str, dict[int, list[float]]] = {side: {} for side in SIDES}
        for streams in STREAMS:
            found = {
                side: [
                    beside_streams(CARDS[name], streams, make, kernels, seed=seed)
                    for seed in range(options.rounds)
                ]
                for side, make in SIDES.items()
            }
            alone = max(outcome.alone for outcome in found["after"])
            ttfts = [max(outcome.ttft for outcome in found[side]) for side in SIDES]
            gaps = [max(outcome.gap for outcome in found[side]) for side in SIDES]
            times = [1000 * seconds for seconds in (alone, *ttfts, *gaps)]
            report.rows.append([name, kernels, streams, *times])
            for side, outcomes in found.items():
                ratios[side][streams] = [outcome.ttft / outcome.alone for outcome in outcomes]
            if kernels == FUSED_KERNELS:
                report.figures += _figures(f"{name}, {streams} beside", found["after"])
        title = f"{name}, {kernels} kernels"
        report.panels.append(Panel(title, "streams", "TTFT / TTFT alone", ratios))
        report.data[title] = ratios
    return report


def _figures(what: str, outcomes: list[Outcome]) -> list[Figure]:
    ttft = max(outcome.ttft / outcome.alone for outcome in outcomes)
    gap = max(outcome.gap / outcome.most_gap for outcome in outcomes)
    return [
        Figure(f"{what}: TTFT / TTFT alone", ttft, "at most", MOST_TTFT),
        Figure(f"{what}: longest gap / allowed gap", gap, "at most", 1.0),
    ]

"""Many requests of all kinds: what the engine counts of them, and that it loses no block."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.engine.request import SamplingParams, TextDelta
from model.phi3v.inputs.processing import PromptInputs
from tests.support.engines.engine_runs import (
    BOUNDARY,
    GREEDY,
    Answers,
    MakeEngine,
    image_prompt,
    run,
    text_prompt,
)


@settings(
    max_examples=5,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=st.integers(0, 2**32), caching=st.booleans(), blocks=st.sampled_from([129, 160, 2048]))
def test_random_traffic(make_engine: MakeEngine, seed: int, caching: bool, blocks: int) -> None:
    """Arrivals, aborts and preemptions at random: no block is lost, no answer is another."""
    rng = random.Random(seed)
    engine = make_engine(num_blocks=blocks, prefix_caching=caching, prefill_chunk=256)
    kinds: dict[str, tuple[PromptInputs, SamplingParams]] = {
        "short": (text_prompt(rng.randrange(1, 60), 1), GREEDY),
        "long": (text_prompt(rng.randrange(1025, 1300), 2), GREEDY),
        "near": (text_prompt(BOUNDARY - rng.randrange(8), 3), GREEDY),
        "image": (image_prompt(engine, "red"), GREEDY),
        "pair": (text_prompt(40, 4), replace(GREEDY, temperature=1.0, seed=5, n=2)),
        "same": (text_prompt(50, 1), replace(GREEDY, temperature=0.7, seed=9)),
    }
    names = [rng.choice(list(kinds)) for _ in range(8)]
    arrivals = sorted(rng.randrange(20) for _ in names)
    aborts = {rng.randrange(40): rng.randrange(len(names)) for _ in range(2)}
    answers: Answers = {}
    aborted: set[int] = set()
    step = 0
    while engine.has_work or step <= max(arrivals):
        for i, at in enumerate(arrivals):
            if at == step:
                engine.add(i, *kinds[names[i]])
        if step in aborts and arrivals[aborts[step]] <= step:
            engine.abort(aborts[step])
            aborted.add(aborts[step])
        for output in engine.step():
            assert isinstance(output.result, TextDelta), output.result
            answers.setdefault(output.key, []).extend(output.result.token_ids)
        # Those that wait may hold some: of a prompt that another has computed.
        holding = [*engine.scheduler.running, *engine.scheduler.waiting]
        holders = [block for sequence in holding for block in sequence.block_table]
        assert len(set(holders)) == engine.stats().blocks_used
        assert engine.stats().blocks_used + engine.stats().blocks_free == blocks
        step += 1
    assert engine.blocks.num_free == blocks
    for i, name in enumerate(names):
        if i not in aborted:
            alone = run(make_engine(prefix_caching=False), kinds[name])
            for (_, index), tokens in alone.items():
                assert answers[i, index] == tokens, (i, name)


def test_stats(make_engine: MakeEngine) -> None:
    engine = make_engine(num_blocks=128)
    run(engine, (text_prompt(40), GREEDY), (text_prompt(1020, 1), GREEDY))
    engine.add(5, text_prompt(30), GREEDY)
    engine.step()
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (1, 0)
    assert stats.blocks_used == 2
    engine.abort(5)
    totals = engine.stats().totals
    assert totals.finished == {"length": 2, "abort": 1}
    assert totals.generated_tokens == 17
    assert totals.prompt_tokens == 40 + 1020 + 30
    assert sum(totals.ttft.counts) == 3
    assert sum(totals.itl.counts) == 14
    assert engine.stats().regime_recomputes == 1

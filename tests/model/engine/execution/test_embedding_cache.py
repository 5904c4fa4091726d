"""An image seen before skips the vision tower."""

from __future__ import annotations

import torch

from model.engine.execution.embedding_cache import EmbeddingCache
from tests.support.engines.engine_runs import GREEDY, MakeEngine, image_prompt, run


def test_an_embedding_outlives_its_prompt(make_engine: MakeEngine) -> None:
    engine = make_engine(prefix_caching=False)
    prompt = image_prompt(engine, "red")
    first = run(engine, (prompt, GREEDY))
    assert (
        run(engine, (prompt, GREEDY), (image_prompt(engine, "red", "why"), GREEDY))[0, 0]
        == (first[0, 0])
    )
    stats = engine.stats()
    assert stats.images_computed == 1
    assert stats.embedding_hits >= 1
    assert stats.embedding_bytes > 0


def test_without_the_embedding_cache_the_tower_runs_again(make_engine: MakeEngine) -> None:
    engine = make_engine(embedding_cache_memory=0, prefix_caching=False)
    prompt = image_prompt(engine, "red")
    first = run(engine, (prompt, GREEDY))
    assert run(engine, (prompt, GREEDY)) == first
    assert engine.stats().images_computed == 2
    assert first == run(make_engine(), (prompt, GREEDY))


def test_the_embedding_cache_is_bounded() -> None:
    cache = EmbeddingCache(100)
    for name in (b"a", b"b"):
        cache.put(name, torch.zeros(10))
    assert cache.get(b"a") is not None
    cache.put(b"c", torch.zeros(10))  # the longest unused goes
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    cache.put(b"d", torch.zeros(26))
    assert cache.get(b"d") is None
    assert cache.num_bytes == 80

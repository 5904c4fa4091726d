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
        cache.put(name, torch.zeros(10), 1)
    assert cache.get(b"a") is not None
    cache.put(b"c", torch.zeros(10), 1)  # the longest unused goes
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    cache.put(b"d", torch.zeros(26), 1)
    assert cache.get(b"d") is None
    assert cache.num_bytes == 80


def test_a_lent_embedding_stays_as_long_as_it_is_lent() -> None:
    cache = EmbeddingCache(100)
    cache.put(b"salt-a", torch.zeros(10), 7)
    assert cache.lend(b"", b"a") is None
    lent = cache.lend(b"salt-", b"a")
    assert lent is not None
    assert (lent.num_tokens, lent.num_pixels, lent.digest, lent.num_bytes) == (10, 7, b"a", 0)
    assert cache.lend(b"salt-", b"a") is lent
    for name in (b"b", b"c"):  # only one of them fits beside it
        cache.put(name, torch.zeros(15), 1)
        assert cache.get(name) is not None
    assert cache.get(b"b") is None
    cache.put(b"d", torch.zeros(16), 1)  # does not fit, and displaces nothing
    assert cache.get(b"d") is None
    assert cache.get(b"c") is not None
    assert cache.num_bytes == 100
    del lent
    cache.put(b"d", torch.zeros(16), 1)
    assert cache.get(b"salt-a") is None
    assert cache.num_bytes == 64

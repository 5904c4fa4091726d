"""Changes of options that would make a model fit into memory."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any

from model.engine.config import BLOCK_SIZE, GIB, LoadOptions
from model.engine.loading.step_size import SMALLEST

SHORTEST = 512  # tokens: smallest default of --max-model-len

# The longest sequence with some changes of options; None if the model does not fit with them.
WindowWith = Callable[[dict[str, Any]], int | None]


def advice(options: LoadOptions, kv_cache: int, left: int, window_with: WindowWith) -> str:
    """Name the flags that would make a model fit, or say that none would.

    Args:
        options: with which it does not fit.
        kv_cache: bytes of the KV cache with these options.
        left: bytes that could be the KV cache's.
        window_with: plans with changes of these options.
    """
    changes = list(_changes(options, kv_cache, left, window_with))
    remedies = [change for change in changes if window_with(change)]
    if not remedies:  # no single flag suffices; try all together
        together = {name: value for change in changes for name, value in change.items()}
        together |= {"max_model_len": None, "kv_cache_memory": None}
        window = window_with(together)
        if window is not None:
            together["max_model_len"] = window
            remedies = [{name: value for name, value in together.items() if value is not None}]
    if not remedies:
        return "no flag would make it fit on this machine"
    flags = [
        " ".join(f"--{name.replace('_', '-')} {value}" for name, value in remedy.items())
        for remedy in remedies
    ]
    return f"it would fit with {' or '.join(flags)}"


def _changes(
    options: LoadOptions, kv_cache: int, left: int, window_with: WindowWith
) -> Iterator[dict[str, Any]]:
    """Changes that might make the model fit, the least intrusive first."""
    if options.max_model_len is not None:
        window = _longest_window(options.max_model_len, window_with)
        if window >= SHORTEST or 0 < window < options.max_model_len < SHORTEST:
            yield {"max_model_len": window}
    asked = options.kv_cache_bytes
    if asked is not None:
        wanted = kv_cache if kv_cache > asked else left
        rounded = math.ceil if kv_cache > asked else math.floor
        yield {"kv_cache_memory": rounded(100 * wanted / GIB) / 100}
    for name in ("prefill_chunk", "max_num_seqs"):
        least = getattr(SMALLEST, name)
        if (getattr(options, name) or 0) > least:
            yield {name: least}
    if options.dtype == "float32":
        yield {"dtype": "bfloat16"}
    if options.quantization == "none":
        yield {"quantization": "int8"}
    if options.quantization != "int4":
        yield {"quantization": "int4"}
    if options.embedding_cache_memory > 0:
        yield {"embedding_cache_memory": 0}


def _longest_window(asked: int, window_with: WindowWith) -> int:
    """The longest window of whole blocks that fits, at most as asked; 0 if none does."""
    windows = range(BLOCK_SIZE, asked + 1, BLOCK_SIZE)
    return BLOCK_SIZE * bisect_left(
        windows, True, key=lambda window: window_with({"max_model_len": window}) is None
    )

"""CUDA graphs for decode steps, in which each sequence computes one token.

A step launches hundreds of kernels, and with few rows launching a kernel takes longer than running it.
A graph launches all of them at once, but repeats exactly what was captured: the same kernels at the
same addresses. So there is one graph per batch size in ``buckets``, all graphs read one static input
tensor, and padding rows compute a dummy token in the scratch block.

Shape suffixes: R rows of a graph, S sequences sampled, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.engine.kv_cache.base import PagedCache
from model.engine.kv_cache.cuda import CudaKVCache
from model.engine.scheduling.scheduler import Chunk
from model.phi3v.decoder import Decoder
from model.phi3v.rope import LongRope
from model.phi3v.transfer import to_device

logger = logging.getLogger(__name__)

FIELDS = 3  # fields of a record before its block table: token id, position, rope regime


class Capture(Protocol):
    """Captures a computation on tensors with fixed addresses."""

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return a function that repeats ``compute`` and refills the same output tensor."""
        ...


class CudaCapture:
    """Captures CUDA graphs. They share a memory pool, so only one may run at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See ``Capture``."""
        # Warm up first, because a library's one-time setup must not be captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may keep using the device.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = compute()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class DecodeGraphs:
    """The decoder captured at several batch sizes.

    Args:
        decoder: of the model.
        cache: the KV cache.
        rope: of the same model.
        buckets: batch sizes, ascending.
        max_blocks: maximum length of a sequence's block table.
        capture: captures one computation.

    Attributes:
        rows: the batch sizes.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: CudaKVCache,
        rope: LongRope,
        buckets: Rows[int],
        max_blocks: int,
        capture: Capture,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._rope = rope
        self.rows = buckets
        # A padding row: token 0 at position 0 of the scratch block.
        self._filler = np.array([0, 0, 0, *[cache.scratch_block] * max_blocks])
        self._records = torch.from_numpy(self._filler).repeat(buckets[-1], 1).to(decoder.device)
        # The largest first, so that the others reuse its memory.
        bar = tqdm(reversed(buckets), "Capturing CUDA graphs", len(buckets))
        self._replays = {rows: capture(self._computation(rows)) for rows in bar}

    def run(self, chunks: list[Chunk]) -> Tensor:
        """Compute one text token per sequence; returns float32 logits ``(S, V)`` of sampling rows."""
        rows = min(rows for rows in self._replays if rows >= len(chunks))
        records = np.tile(self._filler, (rows, 1))
        for record, chunk in zip(records, chunks, strict=False):
            sequence, position = chunk.sequence, chunk.start
            record[:FIELDS] = sequence.token_ids[position], position, sequence.regime
            record[FIELDS:][: len(sequence.block_table)] = sequence.block_table
        self._records[:rows].copy_(to_device(torch.from_numpy(records), self._decoder.device))
        logits_RV = self._replays[rows]()
        # Indexing copies the logits, which the next replay overwrites.
        return logits_RV[[row for row, chunk in enumerate(chunks) if chunk.num_sampled]]

    def _computation(self, rows: int) -> Callable[[], Tensor]:
        """The computation from the first ``rows`` records to their logits."""
        records = self._records[:rows]

        def compute() -> Tensor:
            token_R, position_R, regime_R = records[:, :FIELDS].unbind(1)
            attend = self._cache.decode_attention(position_R, records[:, FIELDS:])
            cos_RD, sin_RD = self._rope.cos_sin(position_R, regime_R, self._decoder.dtype)
            hidden_RE = self._decoder(self._decoder.embed(token_R), cos_RD, sin_RD, attend)
            return self._decoder.logits(hidden_RE)

        return compute


@torch.inference_mode()
def make_decode_graphs(
    decoder: Decoder,
    cache: PagedCache,
    rope: LongRope,
    rows: Rows[int],
    max_blocks: int,
) -> DecodeGraphs | None:
    """Capture graphs for these batch sizes, ascending; None, with a warning, if that is impossible."""
    if not isinstance(cache, CudaKVCache):
        return None  # make_kv_cache has logged why
    try:
        return DecodeGraphs(decoder, cache, rope, rows, max_blocks, CudaCapture())
    except Exception as error:
        logger.warning("decoding without CUDA graphs, which is slower: %s", error)
        return None

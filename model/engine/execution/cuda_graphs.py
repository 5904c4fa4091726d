"""Decoding by CUDA graphs: a step whose sequences compute one token each, replayed.

The decoder launches hundreds of kernels for a step, each of which takes the host longer to launch
than the GPU to run when there are few rows. A graph launches them all at once, but repeats exactly
what was captured: the same kernels, at the same addresses. So there is a graph for each of some
numbers of rows, all read one static tensor, and rows that are left over compute a token that nobody
sees, in a block that nobody owns.

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

FIELDS = 3  # of a record before its block table: token id, position, rope regime


class Capture(Protocol):
    """Records a computation on tensors that stay where they are."""

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A function that repeats ``compute`` and returns the same tensor each time, refilled."""
        ...


class CudaCapture:
    """Captures CUDA graphs. They share the memory that they work in, so one is to run at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See ``Capture``."""
        # What libraries set up at a first call must not become part of the graph.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = compute()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class DecodeGraphs:
    """The decoder captured for some numbers of rows.

    Args:
        decoder: of the model.
        cache: whose keys and values it reads and writes.
        rope: of the same model.
        buckets: numbers of rows, ascending.
        max_blocks: in a sequence's block table, at most.
        capture: records one computation.

    Attributes:
        rows: the numbers of rows.
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
        # A row that stands for no sequence: token 0 at position 0 of the scratch block.
        self._filler = np.array([0, 0, 0, *[cache.scratch_block] * max_blocks])
        self._records = torch.from_numpy(self._filler).repeat(buckets[-1], 1).to(decoder.device)
        # The largest first, whose memory then has room for the others.
        bar = tqdm(reversed(buckets), "Capturing graphs", len(buckets))
        self._replays = {rows: capture(self._computation(rows)) for rows in bar}

    def run(self, chunks: list[Chunk]) -> Tensor:
        """Compute a text token of each sequence; float32 logits ``(S, V)`` of those that sample."""
        rows = min(rows for rows in self._replays if rows >= len(chunks))
        records = np.tile(self._filler, (rows, 1))
        for record, chunk in zip(records, chunks, strict=False):
            sequence, position = chunk.sequence, chunk.start
            record[:FIELDS] = sequence.token_ids[position], position, sequence.regime
            record[FIELDS:][: len(sequence.block_table)] = sequence.block_table
        self._records[:rows].copy_(to_device(torch.from_numpy(records), self._decoder.device))
        logits_RV = self._replays[rows]()
        # A copy: the next replay overwrites these.
        return logits_RV[[row for row, chunk in enumerate(chunks) if chunk.num_sampled]]

    def _computation(self, rows: int) -> Callable[[], Tensor]:
        """From the first ``rows`` records to their logits."""
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
    """Graphs for these numbers of rows, ascending; None where there are none, which is logged."""
    if not isinstance(cache, CudaKVCache):
        return None  # whose making has told why
    try:
        return DecodeGraphs(decoder, cache, rope, rows, max_blocks, CudaCapture())
    except Exception as error:
        logger.warning("decoding without CUDA graphs, which is slower: %s", error)
        return None

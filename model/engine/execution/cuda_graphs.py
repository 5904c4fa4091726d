"""CUDA graphs for decode steps, in which each sequence computes one token, or a few guessed ones.

A step launches hundreds of kernels, and with few rows launching a kernel takes longer than running it.
A graph launches all of them at once, but repeats exactly what was captured: the same kernels at the
same addresses. So there is one graph for each of several sizes, and all graphs read one static input.
Unused rows have length 0 and unused tokens no slot, so they touch no sequence's memory.

Shape suffixes: R rows of a graph, T its tokens, S tokens sampled, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.engine.kv_cache.gpu import GpuAttention, GpuKVCache, PagedReads
from model.engine.scheduling.chunk import Chunk, sampled_tokens
from model.phi3v.decoder_gpu import GpuDecoder
from model.phi3v.rope import LongRope
from model.phi3v.transfer import to_device

logger = logging.getLogger(__name__)


class Capture(Protocol):
    """Captures a computation on tensors with fixed addresses."""

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return a function that repeats ``compute`` and refills the same output tensor."""
        ...


class CudaCapture:
    """Captures CUDA graphs. They share a memory pool, so only one may run at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        # One for all captures, because torch keeps freed memory for the stream that used it.
        self._stream = torch.cuda.Stream()

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """See ``Capture``."""
        # Warm up first, because a library's one-time setup must not be captured.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            compute()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may keep using the device.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            output = compute()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


class Size(NamedTuple):
    """The size of a graph.

    Attributes:
        rows: maximum number of sequences.
        tokens_per_row: maximum number of tokens of a sequence: 1, or more to verify guesses.
    """

    rows: int
    tokens_per_row: int

    @property
    def tokens(self) -> int:
        """Maximum number of tokens."""
        return self.rows * self.tokens_per_row

    def fits(self, lengths: Rows[int]) -> bool:
        """Whether a step whose chunks have these lengths can use the graph."""
        return len(lengths) <= self.rows and max(lengths) <= self.tokens_per_row


@dataclass(frozen=True)
class _Inputs:
    """Parts of the static input of a graph, int32; attributes as in ``PagedReads``."""

    token_T: Tensor
    position_T: Tensor
    regime_T: Tensor
    slot_T: Tensor
    row_R: Tensor
    length_R: Tensor
    start_R: Tensor

    @classmethod
    def of(cls, numbers: Tensor, size: Size) -> _Inputs:
        """Split the first part of the static input, of ``input_length`` numbers."""
        counts = [size.tokens] * 4 + [size.rows] * 2 + [size.rows + 1]
        return cls(*numbers[: input_length(size)].split(counts))


def input_length(size: Size) -> int:
    """How many numbers a graph reads."""
    return 4 * size.tokens + 3 * size.rows + 1


class DecodeGraphs:
    """The decoder captured at several sizes.

    Args:
        decoder: of the model.
        cache: the KV cache.
        rope: of the same model.
        sizes: of the graphs.
        capture: captures one computation.

    Attributes:
        sizes: those captured, ascending by number of tokens.
    """

    def __init__(
        self,
        decoder: GpuDecoder,
        cache: GpuKVCache,
        rope: LongRope,
        sizes: Rows[Size],
        capture: Capture,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._rope = rope
        self.sizes = sorted(sizes, key=lambda size: (size.tokens, size.rows))
        self._numbers = torch.zeros(
            max(map(input_length, self.sizes)), dtype=torch.int32, device=decoder.device
        )
        most = max(size.tokens for size in self.sizes)
        # Rows that no sequence uses keep finite values.
        self._attended_THD = cache.new_output(most)
        # One for all graphs, which would each keep their own.
        self._logits_TV = torch.empty(
            (most, decoder.vocabulary), dtype=torch.float32, device=decoder.device
        )
        # The largest first, so that the others reuse its memory.
        bar = tqdm(reversed(self.sizes), "Capturing CUDA graphs", len(self.sizes))
        self._replays = {size: capture(self._computation(size)) for size in bar}

    def longest_guess(self, rows: int) -> int:
        """Maximum number of tokens that each of ``rows`` sequences may guess."""
        return max(size.tokens_per_row for size in self.sizes if size.rows >= rows) - 1

    def run(self, chunks: list[Chunk]) -> Tensor | None:
        """Compute text tokens; returns float32 logits ``(S, V)``, or None if no graph fits."""
        lengths = [len(chunk) for chunk in chunks]
        size = next((size for size in self.sizes if size.fits(lengths)), None)
        if size is None or any(min(chunk.token_ids) < 0 for chunk in chunks):
            return None
        self._numbers[: input_length(size)].copy_(
            to_device(torch.from_numpy(self._fill(chunks, size)), self._decoder.device)
        )
        logits_TV = self._replays[size]()
        # Copied, because the next step refills the graph's output.
        sampled_S = torch.tensor(sampled_tokens(chunks), dtype=torch.int64)
        return logits_TV.index_select(0, to_device(sampled_S, logits_TV.device))

    def _fill(self, chunks: list[Chunk], size: Size) -> np.ndarray:
        """The input of a step."""
        tables = [chunk.sequence.block_table for chunk in chunks]
        rows = self._cache.tables.rows_of(tables)
        token_T, position_T, regime_T, slot_T = np.zeros((4, size.tokens), np.int32)
        slot_T[:] = -1
        row_R, length_R = np.zeros((2, size.rows), np.int32)
        start_R = np.zeros(size.rows + 1, np.int32)
        row_R[: len(chunks)] = rows
        block_size, end = self._cache.block_size, 0
        for index, (chunk, table) in enumerate(zip(chunks, tables, strict=True)):
            regime, begin = chunk.sequence.regime, end
            for end, token_id in enumerate(chunk.token_ids, begin):
                position = chunk.start + end - begin
                token_T[end], position_T[end], regime_T[end] = token_id, position, regime
                slot_T[end] = table[position // block_size] * block_size + position % block_size
            end += 1
            length_R[index] = chunk.start + len(chunk)
            start_R[index + 1 :] = end
        return np.concatenate([token_T, position_T, regime_T, slot_T, row_R, length_R, start_R])

    def _computation(self, size: Size) -> Callable[[], Tensor]:
        inputs = _Inputs.of(self._numbers, size)
        starts = None if size.tokens_per_row == 1 else inputs.start_R
        output_THD, logits_TV = self._attended_THD[: size.tokens], self._logits_TV[: size.tokens]

        def compute() -> Tensor:
            tables = self._cache.tables.rows(inputs.row_R)
            paged = PagedReads(tables, inputs.length_R, starts, size.tokens_per_row)
            attend = GpuAttention(self._cache, inputs.slot_T, paged, [], output_THD)
            cos_TD, sin_TD = self._rope.cos_sin(
                inputs.position_T, inputs.regime_T, self._decoder.dtype
            )
            hidden_TE = self._decoder.embed(inputs.token_T)
            return self._decoder.logits(self._decoder(hidden_TE, cos_TD, sin_TD, attend), logits_TV)

        return compute


@torch.inference_mode()
def make_decode_graphs(
    decoder: GpuDecoder, cache: GpuKVCache, rope: LongRope, sizes: Rows[Size]
) -> DecodeGraphs | None:
    """Capture graphs of these sizes; None, with a warning, if that is impossible."""
    try:
        return DecodeGraphs(decoder, cache, rope, sizes, CudaCapture())
    except Exception as error:
        logger.warning("decoding without CUDA graphs, which is slower: %s", error)
        return None

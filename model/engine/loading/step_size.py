"""How many sequences and prefill tokens a step may have, where the options leave that to the machine.

A CPU's steps take longer with each token, so it gets few. A GPU computes hundreds of tokens while it reads
the weights, so it gets as many sequences as its KV cache has use for, and long chunks. Long chunks make
prompts cheaper, and pacing cuts them where they would stall streams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from model.engine.config import GIB, LoadOptions
from model.engine.kv_cache.choice import on_cuda
from model.engine.loading.machine import Machine


@dataclass(frozen=True)
class StepSize:
    """What a step may have at most.

    Attributes:
        max_num_seqs: sequences.
        prefill_chunk: prefill tokens.
    """

    max_num_seqs: int
    prefill_chunk: int


SMALLEST = StepSize(16, 512)  # chosen on CPUs, and on GPUs where there is room for no more
CPU_THROUGHPUT = 64  # sequences
# A multiple of the difference between the sizes of CUDA graphs.
ROWS_APART = 8
MOST_ROWS = 256
# A deterministic step is always padded to all rows. So many take little longer than one on each card,
# because reading the weights takes longer.
MOST_ROWS_PADDED = 64
# Tokens of the KV cache for each sequence: a short question with its answer. With longer ones fewer
# sequences run at once than may.
ROW_TOKENS = 512
LARGE_CARD = 70 * GIB
CHUNK, CHUNK_LARGE = 2048, 8192


def step_sizes(options: LoadOptions, machines: Sequence[Machine]) -> Iterator[StepSize]:
    """Sizes to try, the largest first; what the options ask for is not varied.

    Args:
        options: what to load.
        machines: one device, or the GPUs that the layers are spread over; the smallest decides.
    """
    rows, chunks = [SMALLEST.max_num_seqs], [SMALLEST.prefill_chunk]
    if on_cuda(machines[0].device):
        most = MOST_ROWS_PADDED if options.deterministic else MOST_ROWS
        rows = list(range(most, SMALLEST.max_num_seqs - 1, -ROWS_APART))
        is_large = min(machine.memory for machine in machines) >= LARGE_CARD
        chunks = [CHUNK, *chunks]
        chunks = [CHUNK_LARGE, *chunks] if is_large else chunks
    elif options.throughput:
        rows = [CPU_THROUGHPUT, *rows]
    for chunk in chunks if options.prefill_chunk is None else [options.prefill_chunk]:
        for count in rows if options.max_num_seqs is None else [options.max_num_seqs]:
            yield StepSize(count, chunk)


def has_room(
    options: LoadOptions, device: torch.device, size: StepSize, tokens: int, window: int
) -> bool:
    """Whether a KV cache has room for as many sequences as were chosen for a step.

    True for those that the options ask for, and on CPUs, whose KV caches do not decide.

    Args:
        options: what to load.
        device: of the KV cache.
        size: of a step.
        tokens: of the KV cache.
        window: longest sequence, in tokens.
    """
    rows = size.max_num_seqs
    if options.max_num_seqs is not None or rows <= SMALLEST.max_num_seqs or not on_cuda(device):
        return True
    return tokens >= rows * min(ROW_TOKENS, window)

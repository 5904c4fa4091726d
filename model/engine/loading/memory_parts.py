"""Bytes of a model's parts: weights, keys and values, and what a step works with.

The sizes follow from shapes and limits; nothing here is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from model.engine.config import BLOCK_SIZE, Quantization
from model.engine.kv_cache.choice import on_cuda, storage_dtype
from model.engine.loading.step_size import StepSize
from model.engine.policy import MOST_VERIFIED, graph_sizes
from model.gpu.support import MAX_SPLITS, SPLIT
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.vision import CROPS_PER_PASS_CPU, CROPS_PER_PASS_GPU
from model.phi3v.weights.files import Header
from model.phi3v.weights.quantization import LAYERS, quantized_bytes

VISION = ".vision_embed_tokens."
LAYER = "model.layers."
LEAST_QUERIES = 256  # of attention's scratch memory, see kv_cache.gpu, which imports Triton
# Float32 copies of a step's logits on a GPU: those sampled, processed and masked; and of those with log
# probabilities their own and the result.
LOGITS_COPIES = 5


@dataclass(frozen=True)
class Weights:
    """Bytes of weights.

    Attributes:
        decoder: the decoder with its embeddings and head.
        layers: the decoder's layers alone.
        tower: the vision tower with its projection.
    """

    decoder: int
    layers: int
    tower: int

    @classmethod
    def of(
        cls, headers: Mapping[str, Header], dtype: torch.dtype, quantization: Quantization
    ) -> Weights:
        """The weights of a checkpoint's tensors when they are loaded."""
        decoder = layers = tower = 0
        for name, header in headers.items():
            size = math.prod(header.shape) * dtype.itemsize
            if VISION in name:
                tower += size
                continue
            if (
                quantization != "none"
                and LAYERS.search(name.removesuffix(".weight"))
                and len(header.shape) == 2  # other shapes are an error, which loading reports
            ):
                size = quantized_bytes(header.shape, quantization)
            decoder += size
            layers += size if name.startswith(LAYER) else 0
        return cls(decoder, layers, tower)


def slot_bytes(config: Phi3VConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of one position's keys and values in all layers."""
    _, groups, head_dim = _heads(config)
    return 2 * config.num_hidden_layers * groups * head_dim * storage_dtype(dtype, device).itemsize


def embedding_bytes(config: Phi3VConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of image embeddings per position of the KV cache; 0 on a CPU, where they are not planned.

    A sequence keeps its image's embedding until it ends, a row for each image token. The tower runs
    for running sequences only, whose tokens all have positions in the KV cache. So the positions bound
    the rows. A sequence that loses its positions keeps its embedding, which is often the embedding
    cache's.
    """
    return config.hidden_size * dtype.itemsize if on_cuda(device) else 0


def step_bytes(
    config: Phi3VConfig, size: StepSize, dtype: torch.dtype, device: torch.device
) -> int:
    """Bytes of a step's hidden states, projections and logits; on a GPU also of CUDA graphs."""
    rows, chunk = size.max_num_seqs, size.prefill_chunk
    heads, groups, head_dim = _heads(config)
    projected = (heads + 2 * groups) * head_dim
    row = 4 * config.hidden_size + 2 * projected + 3 * config.intermediate_size
    if not on_cuda(device):  # in float32 at most
        copies = 4  # of logits: raw, processed, sorted, and their order
        return 4 * ((chunk + rows) * row + copies * rows * config.vocab_size)
    item = dtype.itemsize
    tokens = chunk + rows + MOST_VERIFIED  # guesses are verified besides
    logits = (rows + MOST_VERIFIED) * config.vocab_size * (item + 4 * LOGITS_COPIES)
    # Graphs share the memory of the largest, which stays reserved.
    largest = max(rows * tokens_per_row for rows, tokens_per_row in graph_sizes(rows))
    captured = largest * (item * (row + config.vocab_size) + 4 * config.vocab_size)
    return item * tokens * row + logits + captured


def window_bytes(
    config: Phi3VConfig, rows: int, window: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Bytes on a GPU that grow with the longest sequence; 0 on a CPU.

    Args:
        config: of the model.
        rows: maximum number of sequences in a step.
        window: longest sequence, in tokens.
        dtype: of keys and values.
        device: of a layer.
    """
    if not on_cuda(device):
        return 0
    heads, groups, head_dim = _heads(config)
    # Of one layer, for a chunk that continues a prompt: keys, and values picked and brought in order.
    gathered = 3 * window * groups * head_dim * dtype.itemsize
    tables = 2 * rows * -(-window // BLOCK_SIZE) * 4  # int32: all, and those of a step
    return gathered + tables + split_scratch_bytes(rows, heads, head_dim, window)


def split_scratch_bytes(rows: int, heads: int, head_dim: int, window: int) -> int:
    """Bytes of the split attention's partial results, float32 ``(queries, heads, splits, head_dim + 2)``.

    Each has its output, its largest score and its sum of weights. The length of a split depends on the
    sequence alone, so that results do not depend on the batch; there are enough for the longest
    sequence. A counter for each query and head tells how many are finished.
    """
    queries = max(rows, LEAST_QUERIES)  # a row that verifies guesses has several
    splits = min(-(-window // SPLIT), MAX_SPLITS)
    return queries * heads * (splits * (head_dim + 2) + 1) * 4


def tower_bytes(config: Phi3VConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of the vision tower's activations: float32 on CPUs, the weights' dtype on GPUs."""
    sizes: Any = config.vision_config
    patches = (sizes.image_size // sizes.patch_size) ** 2 + 1
    row = 6 * sizes.hidden_size + 2 * sizes.intermediate_size
    if on_cuda(device):
        return CROPS_PER_PASS_GPU * patches * row * dtype.itemsize
    return CROPS_PER_PASS_CPU * patches * row * 4


def _heads(config: Phi3VConfig) -> tuple[int, int, int]:
    """Query heads, key-value heads, and a head's size."""
    heads = config.num_attention_heads
    return heads, config.num_key_value_heads or heads, config.hidden_size // heads

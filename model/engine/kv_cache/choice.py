"""Chooses the KV cache for a device: the fast one if it works, else the generic one."""

from __future__ import annotations

import copy
import logging
from itertools import groupby

import torch

from model.engine.config import EngineConfig
from model.engine.kv_cache.base import KVCache, PagedCache
from model.engine.kv_cache.pipeline import PipelineKVCache, Stage
from model.engine.kv_cache.prefill import Prefill, sdpa, unsupported_reason, varlen
from model.phi3v.configuration import Phi3VConfig

logger = logging.getLogger(__name__)


def storage_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of keys and values: the model's, except float32 for float16 on the CPU."""
    if device.type == "cpu" and dtype is torch.float16:
        return torch.float32
    return dtype


def on_cuda(device: torch.device) -> bool:
    """Whether torch calls a device a CUDA device."""
    return device.type == "cuda"


def make_kv_cache(
    model_config: Phi3VConfig,
    config: EngineConfig,
    dtype: torch.dtype,
    layer_devices: list[torch.device],
    fused: bool,
) -> PagedCache:
    """Create a KV cache.

    Args:
        model_config: of the model.
        config: sizes.
        dtype: of the model.
        layer_devices: of the model's layers.
        fused: whether the decoder needs a ``FusedAttention``.
    """
    stages: list[Stage] = []
    for device, layers in groupby(layer_devices):
        stage_config = copy.copy(model_config)
        stage_config.num_hidden_layers = len(list(layers))
        make = _make_fused_stage if fused else _make_stage
        stages.append(make(stage_config, config, dtype, device))
    if len(stages) == 1:
        return stages[0]
    logger.warning("decoding on %d GPUs without CUDA graphs, which is slower", len(stages))
    return PipelineKVCache(stages)


def _make_stage(
    model_config: Phi3VConfig, config: EngineConfig, dtype: torch.dtype, device: torch.device
) -> Stage:
    sizes = (config.num_blocks, config.block_size, storage_dtype(dtype, device), device)
    if device.type == "cpu":
        try:
            from model.engine.kv_cache import cpu
        except ImportError as error:
            reason: str | None = str(error)
        else:
            reason = cpu.unsupported_reason(model_config, config.block_size)
            if reason is None:
                return cpu.CpuKVCache(model_config, *sizes)
        logger.warning("using uncompiled attention, which is slower: %s", reason)
    return KVCache(model_config, *sizes)


def _make_fused_stage(
    model_config: Phi3VConfig, config: EngineConfig, dtype: torch.dtype, device: torch.device
) -> Stage:
    from model.engine.kv_cache.gpu import GpuKVCache

    heads = model_config.num_attention_heads
    groups = model_config.num_key_value_heads or heads
    prefill: Prefill = sdpa
    if dtype != torch.float32:  # varlen_attn supports 16 bits only
        head_dim = model_config.hidden_size // heads
        reason = unsupported_reason(heads, groups, head_dim, dtype, device)
        if reason is None:
            prefill = varlen
        else:
            logger.warning("computing prompts one by one, which is slower: varlen_attn: %s", reason)
    return GpuKVCache(
        model_config,
        config.num_blocks,
        dtype,
        device,
        rows=config.max_num_seqs,
        max_blocks=-(-config.max_model_len // config.block_size),
        prefill=prefill,
    )

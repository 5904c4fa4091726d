"""Chooses the KV cache for a device: the fast one if it works, else the generic one."""

from __future__ import annotations

import copy
import logging
from itertools import groupby

import torch

from model.engine.config import EngineConfig
from model.engine.kv_cache import cuda as kv_cache_cuda
from model.engine.kv_cache.base import KVCache, PagedCache
from model.engine.kv_cache.pipeline import PipelineKVCache
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
) -> PagedCache:
    """Create a KV cache for a model of this dtype with its layers on these devices."""
    stages = []
    for device, layers in groupby(layer_devices):
        stage_config = copy.copy(model_config)
        stage_config.num_hidden_layers = len(list(layers))
        stages.append(_make_stage(stage_config, config, dtype, device))
    if len(stages) == 1:
        return stages[0]
    logger.warning("decoding on %d GPUs without CUDA graphs, which is slower", len(stages))
    return PipelineKVCache(stages)


def _make_stage(
    model_config: Phi3VConfig, config: EngineConfig, dtype: torch.dtype, device: torch.device
) -> KVCache:
    sizes = (config.num_blocks, config.block_size, storage_dtype(dtype, device), device)
    if on_cuda(device):
        return _make_cuda_cache(model_config, *sizes)
    if device.type == "cpu":
        try:
            from model.engine.kv_cache.cpu import CpuKVCache, unsupported_reason
        except ImportError as error:
            reason: str | None = str(error)
        else:
            reason = unsupported_reason(model_config, config.block_size)
            if reason is None:
                return CpuKVCache(model_config, *sizes)
        logger.warning("using uncompiled attention, which is slower: %s", reason)
    return KVCache(model_config, *sizes)


def _make_cuda_cache(
    config: Phi3VConfig, num_blocks: int, size: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    try:
        varlen_attn = kv_cache_cuda.find_varlen_attn()
    except ImportError as error:
        reason: str | None = str(error)
    else:
        reason = kv_cache_cuda.unsupported_reason(config, size, dtype, device, varlen_attn)
        if reason is None:
            return kv_cache_cuda.CudaKVCache(config, num_blocks, size, dtype, device, varlen_attn)
    logger.warning(
        "attention without paging or CUDA graphs, which is slower: varlen_attn: %s", reason
    )
    return KVCache(config, num_blocks, size, dtype, device)

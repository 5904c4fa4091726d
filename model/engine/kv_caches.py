"""Which KV cache runs on a device: the fast one where it works, else the one that runs anywhere."""

from __future__ import annotations

import logging

import torch

from model.engine.config import EngineConfig
from model.engine.kv_cache import KVCache
from model.phi3v.configuration import Phi3VConfig

logger = logging.getLogger(__name__)


def storage_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What keys and values are stored in: the model's dtype, but no float16 on the CPU."""
    if device.type == "cpu" and dtype is torch.float16:
        return torch.float32
    return dtype


def make_kv_cache(
    model_config: Phi3VConfig, config: EngineConfig, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """A KV cache of the engine's sizes for a model of this dtype on this device."""
    sizes = (config.num_blocks, config.block_size, storage_dtype(dtype, device), device)
    if device.type == "cpu":
        try:
            from model.engine.kv_cache_cpu import CpuKVCache, why_not
        except ImportError as error:
            reason: str | None = str(error)
        else:
            reason = why_not(model_config, config.block_size)
            if reason is None:
                return CpuKVCache(model_config, *sizes)
        logger.warning("attention is not compiled and so slower: %s", reason)
    return KVCache(model_config, *sizes)

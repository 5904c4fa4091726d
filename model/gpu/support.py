"""Whether this machine can run the kernels, without importing Triton before that is known."""

from __future__ import annotations

import importlib.util
import subprocess
from typing import Protocol

import torch

# Tokens of a split of paged attention, doubled until a sequence has at most MAX_SPLITS.
SPLIT, MAX_SPLITS = 256, 32
SMALLEST_HEAD, LARGEST_HEAD = 16, 256
LARGEST_VOCABULARY = 32768  # a row of logits stays in the registers of one program


class DecoderSizes(Protocol):
    """What the kernels must know of a model's configuration."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int | None
    vocab_size: int
    hidden_act: str


def unsupported_reason(
    config: DecoderSizes, dtype: torch.dtype, device: torch.device | str
) -> str | None:
    """Why the kernels cannot run a model on a device; None if they can."""
    return _machine_reason(dtype, torch.device(device)) or _model_reason(config, dtype)


def _machine_reason(dtype: torch.dtype, device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    from model.gpu.launch import INTERPRETED

    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"the kernels run on NVIDIA GPUs, not on the device {device.type!r}"
    if torch.version.hip is not None:
        return "the kernels do not support AMD GPUs (ROCm)"
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 5):
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}; 7.5 is required"
    if capability < (8, 0) and dtype != torch.float16:
        return "a GPU of compute capability 7.5 runs the kernels in float16 only"
    return _triton_reason()


def _triton_reason() -> str | None:
    from triton.runtime.driver import driver

    try:
        driver.active.get_current_target()  # compiles or loads what calls the GPU's driver
    except (RuntimeError, OSError, AssertionError, ImportError, subprocess.SubprocessError) as e:
        return (
            f"Triton cannot start: {e}; at the first start it needs gcc and Python's header files "
            "(packages gcc and python3-dev)"
        )
    return None


def _model_reason(config: DecoderSizes, dtype: torch.dtype) -> str | None:
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the kernels support float32, float16 and bfloat16, not {dtype}"
    head_dim, rest = divmod(config.hidden_size, config.num_attention_heads)
    if rest or head_dim % 8 or not SMALLEST_HEAD <= head_dim <= LARGEST_HEAD:
        return (
            f"the head size is {config.hidden_size / config.num_attention_heads:g}; the kernels "
            f"support multiples of 8 from {SMALLEST_HEAD} to {LARGEST_HEAD}"
        )
    if config.num_attention_heads % (config.num_key_value_heads or config.num_attention_heads):
        return "the query heads are not a multiple of the key-value heads"
    if config.hidden_act != "silu":
        return f"the activation is {config.hidden_act!r}; the kernels support silu"
    return None

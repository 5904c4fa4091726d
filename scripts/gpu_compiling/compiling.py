"""Compiles the kernels as the model launches them, for another GPU than this machine's."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from model.gpu.launch import intercepted
from model.gpu.warm_up import Compilation, compilations
from scripts.gpu_compiling.cubin import Usage, read_usage


@dataclass
class OfficialSizes:
    """Sizes of Phi-3-vision-128k-instruct."""

    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    vocab_size: int = 32064
    hidden_act: str = "silu"


@dataclass(frozen=True)
class Row:
    """A form of a kernel, compiled for an architecture; ``error`` instead of usage if it does not compile."""

    kernel: str
    architecture: int
    dtype: str
    seconds: float
    usage: Usage | None
    error: str | None = None


def forms(dtype: torch.dtype) -> list[Compilation]:
    """The forms of kernels that a server of up to 256 sequences launches."""
    return compilations(OfficialSizes(), dtype, "meta", max_sequences=256, queries=(1, 16))


def dtype_for(architecture: int) -> torch.dtype:
    """Turing has no bfloat16."""
    return torch.bfloat16 if architecture >= 80 else torch.float16


def compile_form(kernel: str, architecture: int) -> Row:
    """Compile a form by its name."""
    if knobs.runtime.interpret:
        raise RuntimeError("unset TRITON_INTERPRET: nothing is compiled with it")
    dtype = dtype_for(architecture)
    driver.set_active(_AbsentGpu(architecture))
    launch = dict(forms(dtype))[kernel]
    compiled: list[Any] = []

    start = time.perf_counter()
    usage, error = None, None
    try:
        with intercepted(lambda launch: compiled.append(launch.compile())):
            launch()
        (binary,) = compiled
        threads = 32 * binary.metadata.num_warps
        usage = read_usage(binary.asm["cubin"], architecture, threads, binary.metadata.shared)
    except Exception as e:  # whatever the compiler raises is its verdict on this form
        error = f"{type(e).__name__}: {str(e).strip().splitlines()[-1]}"
    seconds = round(time.perf_counter() - start, 1)
    return Row(kernel, architecture, str(dtype).removeprefix("torch."), seconds, usage, error)


class _AbsentGpu:
    """A driver that knows its GPU's architecture and nothing else."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_device(self) -> int:
        return self._architecture  # Triton keeps compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._architecture, 32)

"""The one place where kernels are launched, so that a tool can count launches and bytes.

with intercepted(seen.append):
    step()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from triton import knobs
from triton.runtime.jit import KernelInterface

INTERPRETED = bool(knobs.runtime.interpret)  # kernels run as numpy operations on CPU tensors


@dataclass(frozen=True)
class Traffic:
    """Bytes of device memory that a launch reads and writes, by formula."""

    read: int
    written: int


@dataclass(frozen=True)
class Launch:
    """A launch of a kernel, as handlers see it.

    Attributes:
        kernel: its name.
        traffic: computes the bytes; attention's depend on lengths, so this waits for the device.
        run: launches the kernel, now or again.
        compile: only compiles it; returns Triton's compiled kernel.
    """

    kernel: str
    traffic: Callable[[], Traffic]
    run: Callable[[], None]
    compile: Callable[[], Any]


_handlers: list[Callable[[Launch], None]] = []


@contextmanager
def intercepted(handler: Callable[[Launch], None]) -> Iterator[None]:
    """Pass each launch to ``handler``, which may run it."""
    _handlers.append(handler)
    try:
        yield
    finally:
        _handlers.remove(handler)


def launch(
    kernel: KernelInterface[Any],
    grid: tuple[int, ...],
    *arguments: Any,
    traffic: Callable[[], Traffic],
    **options: Any,
) -> None:
    """Launch a kernel on the current stream; ``options`` are constants and compiler options."""
    if not _handlers:
        kernel[grid](*arguments, **options)
        return

    def run() -> None:
        kernel[grid](*arguments, **options)

    def compile_only() -> Any:
        return kernel.warmup(*arguments, grid=grid, **options)

    _handlers[-1](Launch(kernel.__name__, traffic, run, compile_only))

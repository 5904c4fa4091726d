"""The one place where kernels are launched, so that a tool can count launches and bytes.

    with observed(seen.append):
        step()

Nothing is computed for the count unless somebody observes.
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
    """A launch of a kernel, as observers see it."""

    kernel: str
    traffic: Traffic


_observers: list[Callable[[Launch], None]] = []
_replacements: list[Callable[..., None]] = []


@contextmanager
def observed(observer: Callable[[Launch], None]) -> Iterator[None]:
    """Call ``observer`` after each launch. Counting attention's bytes waits for the device."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextmanager
def redirected(replacement: Callable[..., None]) -> Iterator[None]:
    """Call ``replacement(kernel, grid, *arguments, **options)`` in place of every launch."""
    _replacements.append(replacement)
    try:
        yield
    finally:
        _replacements.pop()


def launch(
    kernel: KernelInterface[Any],
    grid: tuple[int, ...],
    *arguments: Any,
    traffic: Callable[[], Traffic],
    **options: Any,
) -> None:
    """Launch a kernel on the current stream of the current device, which must be the tensors'.

    Args:
        traffic: computes what is moved; called only for observers.
        options: constants of the kernel and options of the compiler.
    """
    if _replacements:
        _replacements[-1](kernel, grid, *arguments, **options)
        return
    kernel[grid](*arguments, **options)
    if _observers:
        seen = Launch(kernel.__name__, traffic())
        for observer in _observers:
            observer(seen)

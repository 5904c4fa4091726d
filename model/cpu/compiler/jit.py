"""Compiles kernels with numba, and runs them on torch's threads.

numba's own thread pool would compete with torch's for cores, because idle OpenMP threads spin for a
while. So a kernel is a C function that torch's OpenMP library calls on each of its threads. Its only
argument is a record of addresses and sizes. Work is divided into phases of items, which threads take
from counters at the start of the record, so that a thread on a busy core does less and delays no one.

Importing raises ImportError if this is not supported (other operating systems or OpenMP libraries).
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

logger = logging.getLogger(__name__)

PHASES = 6  # maximum of a kernel
PATIENCE = 1000  # pauses (about 20 microseconds) before a waiting thread yields its core


def _cache_directory() -> str:
    """The cache directory, named by a hash of all sources, because numba does not check them all."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        sources.update(path.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    directory = home / "phi3v-server" / f"kernels-{sources.hexdigest()[:16]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:  # no writable home: compile at each start
        try:
            return tempfile.mkdtemp(prefix="phi3v-kernels-")
        except OSError:
            return os.devnull  # not a directory, so numba chooses one
    return str(directory)


def _openmp() -> ctypes.CDLL:
    """The OpenMP library that torch loaded."""
    torch.get_num_threads()
    try:
        loaded = Path("/proc/self/maps").read_text()
    except OSError as error:
        raise ImportError(f"the loaded libraries cannot be listed on {sys.platform}") from error
    for path in re.findall(r"\S*lib[gi]omp\S*\.so\S*", loaded):
        library = ctypes.CDLL(path)
        if hasattr(library, "GOMP_parallel"):
            return library
    raise ImportError("torch uses an OpenMP library without GNU's interface")


if "NUMBA_CACHE_DIR" not in os.environ:
    numba.config.CACHE_DIR = _cache_directory()

_library = _openmp()
llvm.add_symbol("phi3v_yield", ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value)
_yield = types.ExternalFunction("phi3v_yield", types.int32())

# Allow reordering and fused operations; keep infinities and NaN.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}
_cfunc = partial(
    numba.cfunc, types.void(types.intp), nogil=True, fastmath=FASTMATH, error_model="numpy"
)
inner = njit(nogil=True, fastmath=FASTMATH, error_model="numpy")


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), codegen


@intrinsic
def _add_and_get_old(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        pointer = builder.inttoptr(args[0], word.as_pointer())
        return builder.atomic_rmw("add", pointer, word(1), "acq_rel")

    return types.int64(types.intp), codegen


@intrinsic
def _get(typingctx: Any, address: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.intp), codegen


@intrinsic
def _pause(typingctx: Any) -> Any:
    """The CPU's pause instruction, if it has one."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if platform.machine() == "x86_64":
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind), [])
        return context.get_dummy_value()

    return types.void(), codegen


@inner
def array(address, shape, dtype):
    """The C-contiguous array at an address; for use in kernels."""
    return carray(_pointer(address), shape, dtype)


@inner
def take(record, phase):
    """Take the next item of work, from 0."""
    return _add_and_get_old(record + 16 * phase)


@inner
def take_next(record, phase):
    """Mark the last item as done, and take the next."""
    _add_and_get_old(record + 16 * phase + 8)
    return _add_and_get_old(record + 16 * phase)


@inner
def wait(record, phase, items):
    """Wait until all items of a phase are done and their results visible.

    Does not wait for threads without an item, which on a busy machine may not run for a while.
    """
    patience = 0
    while _get(record + 16 * phase + 8) < items:
        patience += 1
        if patience < PATIENCE:
            _pause()
        else:
            _yield()  # a thread with an item may need this core


@inner
def read(record, kind):
    """The record of numpy type ``kind`` at an address."""
    return carray(_pointer(record), 1, kind)[0]


class Kernel:
    """A compiled kernel.

    Args:
        function: ``(address of the record) -> None``, called on each thread.
        fields: names and numpy types of the record's fields; addresses are ``np.intp``.
    """

    _are_kept = True  # cached on disk

    def __init__(self, function: Callable[[int], None], fields: dict[str, Any]) -> None:
        self.record_type = record_type(fields)
        self._compiled = self._compile(function)

    def _compile(self, function: Callable[[int], None]) -> Any:
        if Kernel._are_kept:
            try:
                return _cfunc(cache=True)(function)
            except (OSError, RuntimeError) as error:  # disk full, or no directory
                logger.warning(
                    "failed to cache compiled kernels, so every start is slower: %s", error
                )
                Kernel._are_kept = False
        return _cfunc(cache=False)(function)

    def records(self, /, count: Any = 1, **values: Any) -> np.ndarray:
        """Create records, e.g. one per layer; ``values`` are set in all of them."""
        records = np.zeros(count, self.record_type)
        for name, value in values.items():
            records[name] = value
        return records

    def run(self, records: np.ndarray, index: int = 0) -> None:
        """Run with one record, on as many threads as torch uses; releases the GIL."""
        records["phases"][index] = 0
        _library.GOMP_parallel(
            ctypes.c_void_p(self._compiled.address),
            ctypes.c_void_p(records.ctypes.data + index * records.itemsize),
            torch.get_num_threads(),
            0,
        )


def record_type(fields: dict[str, Any]) -> np.dtype:
    """A kernel's record type: items taken and done in each phase, then its fields."""
    return np.dtype([("phases", np.int64, 2 * PHASES), *fields.items()], align=True)


def address(value: np.ndarray | torch.Tensor) -> int:
    """Address of an array's elements; the caller must keep it alive."""
    if isinstance(value, torch.Tensor):
        assert value.is_contiguous(), "kernels read contiguous arrays"
        return value.data_ptr()
    assert value.flags.c_contiguous, "kernels read contiguous arrays"
    return value.ctypes.data

"""Compiling kernels with numba, and running them on the threads that torch uses.

A second pool of threads, numba's own, would compete with torch's for the cores: idle OpenMP threads
spin for a while. So a kernel here is a C function that torch's OpenMP library calls on each of its
threads. Its one argument is a record of addresses and sizes. Work comes in phases of items, which
the threads take from counters at the start of the record, so that a thread whose core is busy
elsewhere does less and holds up nobody.

Raises ImportError where this cannot work (another operating system, another OpenMP).
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

PHASES = 6  # most that a kernel has
PATIENCE = 1000  # pauses, some 20 microseconds, before a waiting thread offers its core to others


def _cache_directory() -> str:
    """Where compiled kernels are kept; named by their sources, which numba compares only in part."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        sources.update(path.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    directory = home / "phi3v-server" / f"kernels-{sources.hexdigest()[:16]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:  # no home, or a read-only one: compile anew at each start
        try:
            return tempfile.mkdtemp(prefix="phi3v-kernels-")
        except OSError:
            return os.devnull  # is no directory, so that numba looks for one itself
    return str(directory)


def _openmp() -> ctypes.CDLL:
    """The OpenMP library that torch has loaded."""
    torch.get_num_threads()
    try:
        loaded = Path("/proc/self/maps").read_text()
    except OSError as error:
        raise ImportError(f"no list of loaded libraries on {sys.platform}") from error
    for path in re.findall(r"\S*lib[gi]omp\S*\.so\S*", loaded):
        library = ctypes.CDLL(path)
        if hasattr(library, "GOMP_parallel"):
            return library
    raise ImportError("torch uses no OpenMP library with GNU's interface")


if "NUMBA_CACHE_DIR" not in os.environ:
    numba.config.CACHE_DIR = _cache_directory()

_library = _openmp()
llvm.add_symbol("phi3v_yield", ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value)
_yield = types.ExternalFunction("phi3v_yield", types.int32())

# Results may be summed in any order and fused; infinities and NaN keep their meaning.
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
    """Tell the core that this thread is waiting, where it has an instruction for that."""

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
    """The next item of work, from 0, that no other thread of the kernel has taken."""
    return _add_and_get_old(record + 16 * phase)


@inner
def take_next(record, phase):
    """Say that the item taken last is done, and take the next."""
    _add_and_get_old(record + 16 * phase + 8)
    return _add_and_get_old(record + 16 * phase)


@inner
def wait(record, phase, items):
    """Wait until all items of a phase are done; what was written for them is then seen.

    Nobody waits for threads that have taken nothing: on a busy machine some may not run for long.
    """
    patience = 0
    while _get(record + 16 * phase + 8) < items:
        patience += 1
        if patience < PATIENCE:
            _pause()
        else:
            _yield()  # whoever has an item may need this core


@inner
def read(record, kind):
    """The record at an address; ``kind`` is its numpy type."""
    return carray(_pointer(record), 1, kind)[0]


class Kernel:
    """A compiled kernel.

    Args:
        function: ``(address of its record) -> None``, called on each thread.
        fields: of the record: names and numpy types; addresses are ``np.intp``.
    """

    _are_kept = True  # on disk, for the next start

    def __init__(self, function: Callable[[int], None], fields: dict[str, Any]) -> None:
        self.record_type = record_type(fields)
        self._compiled = self._compile(function)

    def _compile(self, function: Callable[[int], None]) -> Any:
        if Kernel._are_kept:
            try:
                return _cfunc(cache=True)(function)
            except (OSError, RuntimeError) as error:  # a full disk; no directory
                logger.warning(
                    "compiled kernels cannot be kept, and each start takes longer for it: %s", error
                )
                Kernel._are_kept = False
        return _cfunc(cache=False)(function)

    def records(self, /, count: Any = 1, **values: Any) -> np.ndarray:
        """Records to be filled further, e.g. one for each layer; a value is set in all of them."""
        records = np.zeros(count, self.record_type)
        for name, value in values.items():
            records[name] = value
        return records

    def run(self, records: np.ndarray, index: int = 0) -> None:
        """Run with one of the records, on as many threads as torch uses; frees the GIL."""
        records["phases"][index] = 0
        _library.GOMP_parallel(
            ctypes.c_void_p(self._compiled.address),
            ctypes.c_void_p(records.ctypes.data + index * records.itemsize),
            torch.get_num_threads(),
            0,
        )


def record_type(fields: dict[str, Any]) -> np.dtype:
    """The record of a kernel: items taken and done in each phase, then its own fields."""
    return np.dtype([("phases", np.int64, 2 * PHASES), *fields.items()], align=True)


def address(value: np.ndarray | torch.Tensor) -> int:
    """Where an array's elements are; the caller keeps it alive."""
    if isinstance(value, torch.Tensor):
        assert value.is_contiguous(), "kernels read contiguous arrays"
        return value.data_ptr()
    assert value.flags.c_contiguous, "kernels read contiguous arrays"
    return value.ctypes.data

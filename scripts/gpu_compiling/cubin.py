"""What a compiled kernel takes, as NVIDIA's tools beside Triton read it from the binary."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
REGISTERS = 65536  # of a multiprocessor
# Threads and KiB of shared memory of a multiprocessor.
LIMITS = {
    75: (1024, 64),
    80: (2048, 164),
    86: (1536, 100),
    89: (1536, 100),
    90: (2048, 228),
    100: (2048, 228),
}


@dataclass(frozen=True)
class Usage:
    """Attributes:
    threads: of a block.
    registers: of a thread.
    spilled: bytes of a thread's registers that are kept in memory.
    shared: bytes of a block.
    blocks: that fit on a multiprocessor at once.
    wide_loads, narrow_loads: instructions that load 16 bytes, or fewer, from global memory.
    """

    threads: int
    registers: int
    spilled: int
    shared: int
    blocks: int
    wide_loads: int
    narrow_loads: int


def read_usage(cubin: bytes, architecture: int, threads: int, dynamic_shared: int) -> Usage:
    """Disassemble a kernel.

    Args:
        threads: of a block.
        dynamic_shared: bytes of shared memory that the launch adds.

    Raises:
        ValueError: the tools' output has another form than expected.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        resources = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", resources)
    loads = re.findall(r"\b(?:LDG|LDGSTS)\.[.\w]+", code)
    if found is None or not loads:
        raise ValueError(f"cuobjdump and nvdisasm say {resources[:200]!r} and {code[:200]!r}")
    registers, stack, static_shared, local = map(int, found.groups())
    shared = static_shared + dynamic_shared
    wide = sum(".128" in load for load in loads)
    most_threads, most_shared = LIMITS[architecture]
    by_warp = -(-registers // 8) * 8 * threads  # registers are handed out by eights
    blocks = min(REGISTERS // by_warp, most_threads // threads)
    if shared:
        blocks = min(blocks, most_shared * 1024 // shared)
    return Usage(threads, registers, stack + local, shared, blocks, wide, len(loads) - wide)


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr

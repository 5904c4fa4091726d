"""Single-threaded training processes: different stages at once, or data-parallel training of one.

Threads synchronize hundreds of times per step, which is slow on a busy machine. Processes synchronize
once per step, or at the end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn


def at_once(functions: Sequence[Callable[..., None]], *arguments: Any) -> None:
    """Call module-level functions concurrently, each in its own process."""
    spawn(_alone, (functions, arguments), nprocs=len(functions))


def _alone(
    number: int, functions: Sequence[Callable[..., None]], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    functions[number](*arguments)


def in_processes(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call a module-level function in ``count`` processes; the first has rank 0."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_one, (count, Path(folder) / "meeting", function, arguments), nprocs=count)


def _one(
    rank: int, count: int, meeting: Path, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=count)
    try:
        function(*arguments)
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average gradients over all processes, so that they take the same step."""
    if processes() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= processes()
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def wait_for_all() -> None:
    """Wait until all processes have arrived here."""
    if processes() > 1:
        dist.barrier()

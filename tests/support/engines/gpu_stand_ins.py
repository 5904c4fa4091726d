"""What stands in for CUDA graphs and the vendor's attention, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode  # documented under this name alone

from model.gpu.launch import Launch, intercepted


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> Tensor:
    """Causal attention of packed sequences that demands what FlashAttention 2 does."""
    assert cu_seq_k is not None
    assert {cu_seq_q.dtype, cu_seq_k.dtype} == {torch.int32}
    assert query.dtype == key.dtype == value.dtype
    assert {x.stride(-1) for x in (query, key, value)} == {1}
    assert window_size == (-1, 0)
    assert (scale, return_aux, seqused_k, block_table, num_splits) == (None,) * 5
    assert enable_gqa == (query.shape[1] != key.shape[1])
    queries, keys = cu_seq_q.diff().tolist(), cu_seq_k.diff().tolist()
    assert (max_q, max_k) == (max(queries), max(keys))
    outputs = []
    pieces = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
    for q, k, v in pieces:
        position = torch.arange(len(k) - len(q), len(k))
        mask = torch.arange(len(k)) <= position[:, None]
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        output = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=enable_gqa)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def refuses(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nand more")


class Tape(TorchDispatchMode):
    """A ``Capture``: repeats torch's operations and kernels on the very tensors of the capture."""

    def __init__(self) -> None:
        super().__init__()
        self.captured: list[int] = []  # tokens of each capture, and of each replay
        self.played: list[int] = []

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self._repeats: list[Callable[[], None]] = []
        with intercepted(self._launch), self:
            output = compute()
        repeats = self._repeats
        self.captured.append(len(output))

        def replay() -> Tensor:
            self.played.append(len(output))
            for repeat in repeats:
                repeat()
            return output

        return replay

    def _launch(self, launch: Launch) -> None:
        # The interpreter calls torch too, which is part of the kernel.
        with torch.utils._python_dispatch._disable_current_modes():
            launch.run()
        self._repeats.append(launch.run)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))

        def repeat() -> None:
            again = func(*args, **(kwargs or {}))
            for old, new in zip(_tensors(result), _tensors(again), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self._repeats.append(repeat)
        return result


def _tensors(result: Any) -> list[Tensor]:
    """Those that an operation returns: one, or several in a sequence."""
    several = result if isinstance(result, (tuple, list)) else [result]
    return [each for each in several if isinstance(each, Tensor)]

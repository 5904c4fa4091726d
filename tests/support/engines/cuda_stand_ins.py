"""What stands in for torch's paged attention and for CUDA graphs, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode  # documented under this name alone


def paged_attention(
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
    """Causal paged attention that demands what FlashAttention 2 does."""
    assert seqused_k is not None
    assert block_table is not None
    assert cu_seq_k is not None
    integers = (cu_seq_q, cu_seq_k, seqused_k, block_table)
    assert {x.dtype for x in integers} == {torch.int32}
    assert query.dtype == key.dtype == value.dtype
    assert {x.stride(-1) for x in (query, key, value, block_table)} == {1}
    assert (window_size, num_splits, scale, return_aux) == ((-1, 0), 1, None, None)
    assert enable_gqa == (query.shape[1] != key.shape[2])
    assert max_k == block_table.shape[1] * key.shape[1]
    index_SQ = cu_seq_q[:-1, None] + torch.arange(max_q)
    is_query_SQ = index_SQ < cu_seq_q[1:, None]
    position_SQ = seqused_k[:, None] - cu_seq_q[1:, None] + index_SQ
    mask_SQL = torch.arange(max_k) <= position_SQ[:, :, None]
    unused_SL = torch.arange(max_k) >= seqused_k[:, None]
    key_SGLD, value_SGLD = (
        stored[block_table]
        .flatten(1, 2)
        .masked_fill(unused_SL[:, :, None, None], 0)
        .transpose(1, 2)
        for stored in (key, value)
    )
    output_SHQD = scaled_dot_product_attention(
        query[index_SQ.clamp(max=len(query) - 1)].transpose(1, 2),
        key_SGLD,
        value_SGLD,
        attn_mask=mask_SQL[:, None],
        enable_gqa=enable_gqa,
    )
    return output_SHQD.transpose(1, 2)[is_query_SQ]


def refuses(*args: Any, **kwargs: Any) -> Tensor:
    raise RuntimeError("Paged KV cache block size must be divisible by 256\nand more")


class Tape(TorchDispatchMode):
    """A ``Capture``: repeats torch's operations on the very tensors they were captured on."""

    def __init__(self) -> None:
        super().__init__()
        self.captured: list[int] = []  # rows of each capture, and of each replay
        self.played: list[int] = []

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self._operations: list[tuple[Any, Any, Any, Any]] = []
        with self:
            output = compute()
        operations = self._operations
        self.captured.append(len(output))

        def replay() -> Tensor:
            self.played.append(len(output))
            for function, args, kwargs, result in operations:
                again = function(*args, **kwargs)
                for old, new in zip(_tensors(result), _tensors(again), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)
            return output

        return replay

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._operations.append((func, args, kwargs or {}, result))
        return result


def _tensors(result: Any) -> list[Tensor]:
    """Those that an operation returns: one, or several in a sequence."""
    several = result if isinstance(result, (tuple, list)) else [result]
    return [each for each in several if isinstance(each, Tensor)]

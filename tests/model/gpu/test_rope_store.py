"""Splitting, rotating and storing, compared bit for bit with the model's own operations."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from model.gpu.rope_store import BLOCK, split_rope_store
from model.phi3v.rope import rotate
from scripts.gpu_checking.references import poisoned

DTYPES = [torch.float32, torch.float16]
SIZES = [(1, 32, 32, 96), (3, 32, 32, 96), (17, 8, 2, 64), (70, 6, 3, 80), (5, 4, 1, 128)]


def angles(tokens: int, dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    angle = torch.rand(tokens, dim // 2).mul(6).repeat(1, 2)
    return (angle.cos() * 1.19).to(dtype), (angle.sin() * 1.19).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("copies", [True, False])
def test_rotates_and_stores(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, copies: bool
) -> None:
    torch.manual_seed(0)
    tokens, heads, groups, dim = sizes
    qkv = torch.randn(tokens, (heads + 2 * groups) * dim).to(dtype)
    cos, sin = angles(tokens, dim, dtype)
    blocks = tokens // BLOCK + 3
    slot = torch.randperm(blocks * BLOCK, dtype=torch.int32)[:tokens]
    cache = poisoned(blocks, 2, groups, BLOCK, dim, dtype=dtype)
    q_out = poisoned(tokens, heads, dim, dtype=dtype)
    k_out, v_out = (poisoned(tokens, groups, dim, dtype=dtype) for _ in range(2))

    extra = (k_out, v_out) if copies else ()
    split_rope_store(qkv, cos, sin, slot, cache, q_out, *extra)

    q, k, v = qkv.view(tokens, -1, dim).split([heads, groups, groups], dim=1)
    k = rotate(k, cos, sin)
    assert torch.equal(q_out, rotate(q, cos, sin))
    stored = cache[slot // BLOCK, :, :, slot % BLOCK]  # (tokens, 2, groups, dim)
    assert torch.equal(stored[:, 0], k)
    assert torch.equal(stored[:, 1], v)
    assert int(cache.isnan().sum()) == cache.numel() - 2 * tokens * groups * dim
    if copies:
        assert torch.equal(k_out, k)
        assert torch.equal(v_out, v)


def test_stores_nothing_for_a_negative_slot() -> None:
    torch.manual_seed(1)
    cache = poisoned(2, 2, 2, BLOCK, 16, dtype=torch.float32)
    qkv = torch.randn(3, 6 * 16)
    q_out = torch.empty(3, 2, 16)
    slot = torch.tensor([-1, 20, -1], dtype=torch.int32)
    split_rope_store(qkv, *angles(3, 16, torch.float32), slot, cache, q_out)
    assert not cache[1, :, :, 4].isnan().any()
    assert int((~cache.isnan()).sum()) == 2 * 2 * 16
    assert not q_out.isnan().any()

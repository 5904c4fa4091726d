"""Compiled kernels compute what torch computes, and each row alone as in any batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

pytest.importorskip("model.cpu.jit", reason="torch has no OpenMP that kernels could run on")

from model.cpu import microkernel
from model.cpu.attention import paged_attention
from model.cpu.jit import address, record_type
from model.cpu.linear import TiledLinear
from model.cpu.packing import pack, pack_pairs

DTYPES = [
    pytest.param(
        dtype,
        marks=pytest.mark.skipif(
            not microkernel.supported(dtype is torch.bfloat16),
            reason="this CPU multiplies faster, or only, without the kernels",
        ),
    )
    for dtype in (torch.float32, torch.bfloat16)
]
LOOSE = {"rtol": 2e-2, "atol": 2e-2}
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


def layer(inputs: int, outputs: int, dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    torch.manual_seed(inputs * outputs)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)


def tiled(plain: nn.Linear, activation: str = "none") -> TiledLinear:
    bias = None if plain.bias is None else plain.bias
    shape = (plain.out_features, plain.in_features)
    return TiledLinear(pack(plain.weight.data), bias, shape, activation)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (64, 48), (96, 100), (130, 769)])
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 15, 129, 300])
def test_a_linear_layer(dtype: torch.dtype, inputs: int, outputs: int, rows: int) -> None:
    plain = layer(inputs, outputs, dtype, bias=rows % 2 == 0)
    x = torch.randn(rows, inputs).to(dtype)
    bounds = TIGHT if dtype is torch.float32 else LOOSE
    torch.testing.assert_close(tiled(plain)(x), plain(x), **bounds)
    torch.testing.assert_close(tiled(plain)(x[None].expand(2, -1, -1))[1], plain(x), **bounds)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_in_any_batch(dtype: torch.dtype) -> None:
    packed = tiled(layer(200, 333, dtype))
    x = torch.randn(40, 200).to(dtype)
    together = packed(x)
    for rows in (1, 3, 8, 13):
        assert torch.equal(packed(x[:rows]), together[:rows])
        assert torch.equal(packed(x[-rows:].clone()), together[-rows:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_quick_gelu(dtype: torch.dtype) -> None:
    plain = layer(64, 70, dtype)
    x = 30 * torch.randn(33, 64).to(dtype)
    sums = linear(x.float(), plain.weight.float(), plain.bias.float())
    expected = (sums * torch.sigmoid(1.702 * sums)).to(dtype)
    bounds = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else LOOSE
    torch.testing.assert_close(tiled(plain, "quick_gelu")(x), expected, **bounds)


def test_packed_panels_are_aligned_and_in_order() -> None:
    weight = torch.arange(100 * 3, dtype=torch.float32).view(100, 3)
    packed = pack(weight)
    assert packed.shape == (3, 3, 48)
    assert packed.data_ptr() % 64 == 0
    columns = packed.view(torch.float32).transpose(1, 2).reshape(-1, 3)
    assert torch.equal(columns[:100], weight)
    assert not columns[100:].any()
    pairs = pack_pairs(weight, weight + 1)
    assert torch.equal(pairs[::2], packed)
    assert torch.equal(pairs[1::2], pack(weight + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_paged_attention(dtype: torch.dtype, groups: int) -> None:
    """Sequences of several lengths in scattered blocks; the rows between them are left alone."""
    torch.manual_seed(groups)
    heads, dim, block_size, num_blocks = 4, 24, 4, 40
    lengths, rows, tokens = [1, 4, 5, 31], [0, 2, 3, 5], 6
    keys = torch.randn(num_blocks, groups, block_size, dim).to(dtype)
    values = torch.randn_like(keys)
    q = torch.randn(tokens, heads, dim)
    k, v = torch.randn(2, tokens, groups, dim).to(dtype)
    free = torch.randperm(num_blocks - 1).tolist()
    tables = [[free.pop() for _ in range(math.ceil(length / block_size))] for length in lengths]
    block, offset = torch.full((2, tokens), num_blocks - 1)
    offset[:] = 0
    for row, table, length in zip(rows, tables, lengths, strict=True):
        block[row], offset[row] = table[-1], (length - 1) % block_size
    counts = torch.tensor([0, *map(len, tables)]).cumsum(0)
    arrays = {
        "row": torch.tensor(rows),
        "start": counts[:-1].contiguous(),
        "length": torch.tensor(lengths),
        "table": torch.tensor([b for table in tables for b in table]),
        "block": block.contiguous(),
        "offset": offset.contiguous(),
    }
    output = torch.full((tokens, heads, dim), -7.0)
    tensors = {"q": q, "k": k, "v": v, "keys": keys, "values": values, "output": output, **arrays}
    kernel = paged_attention(dtype is torch.bfloat16)
    sizes = {"tokens": tokens, "singles": len(rows), "heads": heads, "groups": groups}
    sizes |= {"head_dim": dim, "num_blocks": num_blocks, "block_size": block_size}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    kernel.run(kernel.records(**sizes, **{name: address(t) for name, t in contiguous.items()}))
    for row, table, length in zip(rows, tables, lengths, strict=True):
        stored_k = keys[table].transpose(0, 1).flatten(1, 2)[:, :length]
        stored_v = values[table].transpose(0, 1).flatten(1, 2)[:, :length]
        assert torch.equal(stored_k[:, -1], k[row])
        assert torch.equal(stored_v[:, -1], v[row])
        expected = attention(q[row], stored_k.float(), stored_v.float())
        torch.testing.assert_close(contiguous["output"][row], expected, rtol=1e-5, atol=1e-5)
    assert (contiguous["output"][[1, 4]] == -7).all()


def attention(q_HD: Tensor, k_GLD: Tensor, v_GLD: Tensor) -> Tensor:
    repeat = q_HD.shape[0] // k_GLD.shape[0]
    k, v = k_GLD.repeat_interleave(repeat, 0), v_GLD.repeat_interleave(repeat, 0)
    scores = (k @ q_HD[:, :, None])[:, :, 0] / q_HD.shape[1] ** 0.5
    return (scores.softmax(-1)[:, None] @ v)[:, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gated_product_and_a_norm(dtype: torch.dtype) -> None:
    """The part of a layer after attention, against its formula."""
    from model.cpu.decoder import DecoderKernels

    width, intermediate, tokens = 64, 100, 11
    output = layer(width, width, dtype, bias=False).weight.data
    gate, up = (layer(width, intermediate + i, dtype, False).weight.data[:intermediate] for i in (0, 1))
    down = layer(intermediate, width, dtype, bias=False).weight.data
    norm = torch.rand(width)
    hidden, attended = torch.randn(2, tokens, width)
    expected = hidden + linear(attended.to(dtype).float(), output.float())
    normed = expected * (expected.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm
    normed = normed.to(dtype).float()
    gated = silu(linear(normed, gate.float())) * linear(normed, up.float())
    expected += linear(gated.to(dtype).float(), down.float())
    kernel = DecoderKernels(dtype is torch.bfloat16).after
    packed = {"output": pack(output), "pairs": pack_pairs(gate, up), "down": pack(down)}
    fields = {f"{name}_weight": address(weight) for name, weight in packed.items()}
    fields |= {f"{name}_panels": weight.shape[0] for name, weight in packed.items()}
    fields |= {f"{name}_words": weight.shape[1] for name, weight in packed.items()}
    scratch = [torch.empty(tokens, size, dtype=dtype) for size in (width, intermediate)]
    hidden, attended = hidden.contiguous(), attended.contiguous()
    records = kernel.records(
        hidden=address(hidden),
        attended=address(attended),
        inputs=address(scratch[0]),
        gated=address(scratch[1]),
        norm=address(norm),
        tokens=tokens,
        width=width,
        inner_width=width,
        intermediate=intermediate,
        epsilon=1e-5,
        **fields,
    )
    kernel.run(records)
    bounds = TIGHT if dtype is torch.float32 else LOOSE
    torch.testing.assert_close(hidden, expected, **bounds)


def test_records_start_with_their_counters() -> None:
    kind = record_type({"x": "i8"})
    assert kind.fields is not None
    assert kind.fields["counters"][1] == 0

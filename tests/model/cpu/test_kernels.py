"""Compiled kernels compute what torch computes, and each row alone as in any batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

pytest.importorskip(
    "model.cpu.compiler.jit",
    reason="torch has no OpenMP that kernels could run on",
    exc_type=ImportError,
)

from model.cpu.attention import paged_attention
from model.cpu.blocks import BLOCK
from model.cpu.compiler.jit import address, record_type
from model.cpu.linear import microkernel
from model.cpu.linear.linear import Activation, TiledLinear
from model.cpu.linear.packing import pack, pack_pairs
from model.cpu.self_attention import SelfAttention
from model.cpu.token_masks import CpuMaskKernel
from model.engine.kv_cache.base import Span
from model.engine.kv_cache.cpu import tiles_of
from model.engine.sampling.token_masks import (
    TorchMaskKernel,
    highest_by_byte,
    make_mask_kernel,
)

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
LOOSE: dict[str, Any] = {"rtol": 2e-2, "atol": 2e-2}
TIGHT: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def layer(inputs: int, outputs: int, dtype: torch.dtype, bias: bool = True) -> nn.Linear:
    torch.manual_seed(inputs * outputs)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype).requires_grad_(False)


def tiled(plain: nn.Linear, activation: Activation = "none") -> TiledLinear:
    shape = (plain.out_features, plain.in_features)
    return TiledLinear(pack(plain.weight.data), plain.bias, shape, activation)


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


class Paged:
    """Sequences in scattered blocks, and what a step over spans of them needs."""

    heads, dim = 4, 32

    def __init__(self, dtype: torch.dtype, groups: int, lengths: list[int]) -> None:
        torch.manual_seed(groups)
        self.dtype, self.groups = dtype, groups
        tables = [math.ceil(length / BLOCK) for length in lengths]
        blocks = iter(torch.randperm(sum(tables) + 3).tolist())
        self.tables = [[next(blocks) for _ in range(count)] for count in tables]
        self.num_blocks = sum(tables) + 3
        shape = (sum(lengths), groups, self.dim)
        self.k, self.v = torch.randn(2, *shape).to(dtype).unbind()
        self.q = torch.randn(sum(lengths), self.heads, self.dim)
        self.starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
        self.keys = torch.full((self.num_blocks, groups, self.dim, BLOCK), torch.nan, dtype=dtype)
        self.values = torch.full((self.num_blocks, groups, BLOCK, self.dim), torch.nan, dtype=dtype)

    def step(self, spans: list[tuple[int, int, int]]) -> Tensor:
        """Outputs of positions ``start`` to ``end`` of some sequences, ``(sequence, start, end)``."""
        rows = torch.cat([self.starts[s] + torch.arange(a, b) for s, a, b in spans])
        q, k, v = self.q[rows], self.k[rows].contiguous(), self.v[rows].contiguous()
        out = torch.empty_like(q)
        slots = [(self.tables[s][p // BLOCK], p % BLOCK) for s, a, b in spans for p in range(a, b)]
        starts = torch.tensor([0, *(len(self.tables[s]) for s, _, _ in spans)]).cumsum(0).tolist()
        tiles = list(tiles_of([Span(self.tables[s], a, b) for s, a, b in spans], starts))
        arrays = {
            "block": [block for block, _ in slots],
            "offset": [offset for _, offset in slots],
            "table": [block for s, _, _ in spans for block in self.tables[s]],
            **dict(
                zip(
                    ("tile_row", "tile_size", "tile_start", "tile_length"),
                    zip(*tiles, strict=True),
                    strict=True,
                )
            ),
        }
        tensors = {name: torch.tensor(values) for name, values in arrays.items()}
        tensors |= {"q": q, "k": k, "v": v, "output": out}
        tensors |= {"keys": self.keys, "values": self.values}
        kernel = paged_attention(self.dtype is torch.bfloat16)
        records = kernel.records(
            tokens=len(q),
            tiles=len(tiles),
            heads=self.heads,
            groups=self.groups,
            head_dim=self.dim,
            num_blocks=self.num_blocks,
            **{name: address(tensor) for name, tensor in tensors.items()},
        )
        kernel.run(records)
        return out

    def expected(self, sequence: int, position: int) -> Tensor:
        start = self.starts[sequence]
        seen = slice(start, start + position + 1)
        k, v = self.k[seen].transpose(0, 1).float(), self.v[seen].transpose(0, 1).float()
        return attention(self.q[start + position], k, v)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_paged_attention(dtype: torch.dtype, groups: int) -> None:
    """Prefill in chunks of any size beside single tokens; unwritten slots hold NaN."""
    lengths = [1, 16, 17, 131]
    paged = Paged(dtype, groups, lengths)
    outputs: list[list[Tensor]] = [[] for _ in lengths]
    for step in (
        [(0, 0, 1), (1, 0, 5), (3, 0, 100)],
        [(3, 100, 101), (1, 5, 16), (2, 0, 16)],
        [(2, 16, 17), (3, 101, 131)],
    ):
        rows = iter(paged.step(step))
        for sequence, start, end in step:
            outputs[sequence] += [next(rows) for _ in range(start, end)]
    for sequence, length in enumerate(lengths):
        for position in range(length):
            torch.testing.assert_close(
                outputs[sequence][position],
                paged.expected(sequence, position),
                rtol=1e-5,
                atol=1e-5,
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_do_not_change_a_bit(dtype: torch.dtype) -> None:
    whole = Paged(dtype, 2, [70]).step([(0, 0, 70)])
    for size in (1, 3, 8, 33):
        paged = Paged(dtype, 2, [70])
        parts = [paged.step([(0, at, min(at + size, 70))]) for at in range(0, 70, size)]
        assert torch.equal(torch.cat(parts), whole)


def attention(q_HD: Tensor, k_GLD: Tensor, v_GLD: Tensor) -> Tensor:
    repeat = q_HD.shape[0] // k_GLD.shape[0]
    k, v = k_GLD.repeat_interleave(repeat, 0), v_GLD.repeat_interleave(repeat, 0)
    scores = (k @ q_HD[:, :, None])[:, :, 0] / q_HD.shape[1] ** 0.5
    return (scores.softmax(-1)[:, None] @ v)[:, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("patches", "heads", "dim"), [(577, 2, 64), (5, 3, 16), (50, 1, 100)])
def test_self_attention(dtype: torch.dtype, patches: int, heads: int, dim: int) -> None:
    width = heads * dim
    plain = [layer(width, width, dtype, bias) for bias in (True, False, True, False)]
    for i, projection in enumerate(plain):
        projection.weight.mul_(1 + i)
    hidden = torch.randn(3, patches, width).to(dtype)
    q, k, v = (
        project(hidden).view(3, patches, heads, dim).transpose(1, 2).float()
        for project in plain[:3]
    )
    mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    q, k, v, out = map(tiled, plain)
    found, _ = SelfAttention(q, k, v, out, heads)(hidden, attention_mask=None)
    bounds = TIGHT if dtype is torch.float32 else {"rtol": 3e-2, "atol": 5e-2}
    torch.testing.assert_close(found, plain[3](mixed.to(dtype)), **bounds)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gated_product_and_a_norm(dtype: torch.dtype) -> None:
    """The part of a layer after attention, against its formula."""
    from model.cpu.decoder import DecoderKernels

    width, intermediate, tokens = 64, 100, 11
    output = layer(width, width, dtype, bias=False).weight.data
    gate, up = (
        layer(width, intermediate + i, dtype, False).weight.data[:intermediate] for i in (0, 1)
    )
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


def test_records_start_with_their_phases() -> None:
    kind = record_type({"x": "i8"})
    assert kind.fields is not None
    assert kind.fields["phases"][1] == 0


@pytest.mark.parametrize("vocabulary", [5, 37, 64, 32064])
def test_masks_of_grammars(vocabulary: int) -> None:
    torch.manual_seed(vocabulary)
    rows, num_bytes = 3, -(-vocabulary // 32) * 4
    compiled = make_mask_kernel(rows, num_bytes, torch.device("cpu"))
    assert isinstance(compiled, CpuMaskKernel)
    maskings: list[Callable[[Tensor, Tensor, Tensor], None]] = [
        compiled,
        TorchMaskKernel(highest_by_byte(), rows * num_bytes),
    ]
    logits = torch.randn(rows, vocabulary) * 1e3
    for number, value in enumerate((math.nan, math.inf, -math.inf, 3.3e38, -3.3e38)):
        logits[number % rows, number % vocabulary :: 7] = value
    masks = torch.randint(0, 256, (rows, num_bytes), dtype=torch.uint8)
    for some in (slice(1), slice(rows)):
        outs = [torch.full_like(logits[some], 7), torch.full_like(logits[some], 8)]
        for masking, out in zip(maskings, outs, strict=True):
            masking(logits[some], masks[some], out)
        assert torch.equal(*outs)
        assert outs[0].isfinite().all()
        bits = (masks[some, :, None] >> torch.arange(8)) & 1
        allowed = bits.flatten(1)[:, :vocabulary] == 1
        assert outs[0][allowed].abs().max() < 2e30 < outs[0][~allowed].abs().min()

"""What kernels must compute: torch's operators in float32 or float64, and random inputs.

Shape suffixes as in ``model.gpu``; K columns of the fused projection, ``(H + 2 G) D``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, silu

from model.phi3v.rope import rotate

# Largest difference from float32, for results up to 1; relative for larger ones.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
BLOCK = 16
NOWHERE = 2**30  # a table entry that must not be used


def excess(actual: Tensor, expected: Tensor, scale: float = 1.0) -> float:
    """The largest difference, as a multiple of the dtype's tolerance times ``scale``.

    Args:
        actual: of the dtype whose tolerance counts; NaN is infinitely far off.
        expected: float32, of the same shape.
        scale: of the tolerance.
    """
    allowed = scale * TOLERANCE[actual.dtype] * expected.abs().clamp(min=1)
    difference = (actual.float() - expected).abs() / allowed
    return difference.nan_to_num(nan=torch.inf).max().item() if actual.numel() else 0.0


def poisoned(*shape: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Memory whose use would show in any result."""
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


def normed(x_TE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """RMS norm in float32."""
    x_TE = x_TE.float()
    mean_T1 = x_TE.square().mean(-1, keepdim=True)
    return weight_E.float() * x_TE * torch.rsqrt(mean_T1 + eps)


def gated(gate_up_TI2: Tensor) -> Tensor:
    """The MLP's gate in float32, with silu rounded to the dtype as the model does."""
    gate_TI, up_TI = gate_up_TI2.float().chunk(2, dim=-1)
    return up_TI * silu(gate_TI).to(gate_up_TI2.dtype).float()


def split_and_rotated(
    qkv_TK: Tensor, cos_TD: Tensor, sin_TD: Tensor, heads: int, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries ``(T, H, D)`` and keys, and values ``(T, G, D)``, rounded as the model does."""
    qkv = qkv_TK.view(len(qkv_TK), -1, cos_TD.shape[1])
    q_THD, k_TGD, v_TGD = qkv.split([heads, groups, groups], dim=1)
    return rotate(q_THD, cos_TD, sin_TD), rotate(k_TGD, cos_TD, sin_TD), v_TGD


@dataclass
class PagedSequences:
    """The arguments of ``paged_decode``, and what it must compute."""

    q_THD: Tensor
    cache_layer: Tensor
    table_SW: Tensor
    length_S: Tensor
    query_start_S1: Tensor
    max_query: int
    expected_THD: Tensor

    def on(self, device: torch.device) -> PagedSequences:
        """The same on a device."""
        moved = {
            name: value.to(device) for name, value in vars(self).items() if name != "max_query"
        }
        return PagedSequences(**moved, max_query=self.max_query)

    def subset(self, which: Sequence[int], width: int) -> PagedSequences:
        """Some of the sequences, in another order and with a table of another width."""
        starts = self.query_start_S1.tolist()
        rows = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in which])
        counts = [starts[s + 1] - starts[s] for s in which]
        table_SW = torch.full((len(which), width), NOWHERE, dtype=torch.int32)
        used = min(width, self.table_SW.shape[1])
        table_SW[:, :used] = self.table_SW[which, :used]
        return PagedSequences(
            self.q_THD[rows],
            self.cache_layer,
            table_SW,
            self.length_S[which],
            torch.tensor([0, *accumulate(counts)], dtype=torch.int32),
            max(counts),
            self.expected_THD[rows],
        )


def paged_sequences(
    lengths: Sequence[int],
    queries: Sequence[int],
    heads: int,
    groups: int,
    dim: int,
    dtype: torch.dtype = torch.float32,
) -> PagedSequences:
    """Random sequences of these lengths in scattered blocks; the last tokens ask for attention."""
    torch.manual_seed(sum(lengths))
    blocks = [-(-length // BLOCK) for length in lengths]
    scattered = torch.randperm(sum(blocks) + 3)
    cache = poisoned(sum(blocks) + 3, 2, groups, BLOCK, dim, dtype=dtype)
    table_SW = torch.full((len(lengths), max(blocks) + 2), NOWHERE, dtype=torch.int32)
    q_THD = torch.randn(sum(queries), heads, dim).to(dtype)
    starts = [0, *accumulate(queries)]
    expected = []
    for s, (length, count) in enumerate(zip(lengths, queries, strict=True)):
        own = scattered[sum(blocks[:s]) :][: blocks[s]]
        table_SW[s, : blocks[s]] = own
        keys_values = torch.randn(2, groups, length, dim).to(dtype)
        for i, block in enumerate(own.tolist()):
            part = keys_values[:, :, i * BLOCK : (i + 1) * BLOCK]
            cache[block, :, :, : part.shape[2]] = part
        k, v = keys_values.double().repeat_interleave(heads // groups, dim=1)
        q = q_THD[starts[s] : starts[s + 1]].double().transpose(0, 1)
        seen = torch.arange(length) <= torch.arange(length - count, length)[:, None]
        expected.append(scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(0, 1))
    return PagedSequences(
        q_THD,
        cache,
        table_SW,
        torch.tensor(lengths, dtype=torch.int32),
        torch.tensor(starts, dtype=torch.int32),
        max(queries),
        torch.cat(expected).float(),
    )

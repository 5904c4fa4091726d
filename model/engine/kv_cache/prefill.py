"""Causal attention of prompts on a GPU: the vendor's kernels, on contiguous keys and values.

``torch.nn.attention.varlen.varlen_attn`` computes several prompts in one call. Where it does not work,
``scaled_dot_product_attention`` computes them one by one.

Shape suffixes: Q query tokens and L keys of all sequences of a call, H query heads, G key-value heads,
D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from model.phi3v.checkpoint import first_line
from model.phi3v.transfer import to_device

TOLERANCE = 0.03  # allows bfloat16 rounding; a wrong or missing key exceeds it by far

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Prefill(Protocol):
    """Prepares the attention of one call, for all layers."""

    def __call__(
        self, queries: Sequence[int], keys: Sequence[int], device: torch.device
    ) -> Attend:
        """Return ``(q (Q, H, D), k (L, G, D), v (L, G, D)) -> output (Q, H, D)``.

        Args:
            queries: number of query tokens of each sequence: its last ones.
            keys: number of keys of each sequence.
            device: of the tensors.
        """
        ...


def sdpa(queries: Sequence[int], keys: Sequence[int], device: torch.device) -> Attend:
    """A ``Prefill`` that computes sequence by sequence, in any dtype and on any device."""
    masks = [causal_lower_right(*lengths) for lengths in zip(queries, keys, strict=True)]

    def attend(q_QHD: Tensor, k_LGD: Tensor, v_LGD: Tensor) -> Tensor:
        pieces = zip(q_QHD.split(queries), k_LGD.split(keys), v_LGD.split(keys), masks, strict=True)
        outputs = []
        for q, k, v, mask in pieces:
            output = scaled_dot_product_attention(
                *(x.transpose(0, 1)[None] for x in (q, k, v)),
                attn_mask=mask,
                enable_gqa=q.shape[1] != k.shape[1],
            )
            outputs.append(output[0].transpose(0, 1))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    return attend


def varlen(queries: Sequence[int], keys: Sequence[int], device: torch.device) -> Attend:
    """A ``Prefill`` that computes all sequences in one call.

    Raises:
        ImportError: this version of torch lacks ``varlen_attn``.
    """
    from torch.nn.attention.varlen import varlen_attn

    starts = torch.tensor([[0, *accumulate(lengths)] for lengths in (queries, keys)])
    query_start, key_start = to_device(starts.to(torch.int32), device)
    sizes = (query_start, key_start, max(queries), max(keys))

    def attend(q_QHD: Tensor, k_LGD: Tensor, v_LGD: Tensor) -> Tensor:
        # Older versions have no enable_gqa, so it is not passed for other models.
        gqa = {"enable_gqa": True} if q_QHD.shape[1] != k_LGD.shape[1] else {}
        # Causal, aligned to each sequence's last position.
        return varlen_attn(q_QHD, k_LGD, v_LGD, *sizes, window_size=(-1, 0), **gqa)

    return attend


@torch.inference_mode()
def unsupported_reason(
    heads: int, groups: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why ``varlen`` does not support these sizes on a device; None if it agrees with ``sdpa``."""
    queries, keys = [5, 40, 1], [5, 73, 30]
    generator = torch.Generator().manual_seed(0)
    q_QHD, k_LGD, v_LGD = (
        torch.randn(count, number, head_dim, generator=generator).to(device, dtype)
        for count, number in ((sum(queries), heads), (sum(keys), groups), (sum(keys), groups))
    )
    try:
        expected, found = (
            make(queries, keys, device)(q_QHD, k_LGD, v_LGD).float() for make in (sdpa, varlen)
        )
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    if found.shape != expected.shape:
        return f"its result has the wrong shape {tuple(found.shape)}"
    worst = float(((found - expected).abs() / (1 + expected.abs())).max())
    # The negation is also true for NaN.
    return None if worst <= TOLERANCE else f"its results are off by {worst:.3g}"

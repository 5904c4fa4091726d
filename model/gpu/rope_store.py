"""Splits the fused projection into queries, keys and values, rotates, and fills the cache.

Shape suffixes: T tokens, H query heads, G key-value heads, D head dim, N blocks, B slots of a block (16).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.gpu.launch import INTERPRETED, Traffic, launch

BLOCK = 16  # slots of a block of the cache


def split_rope_store(
    qkv_T: Tensor,
    cos_TD: Tensor,
    sin_TD: Tensor,
    slot_T: Tensor,
    cache_layer: Tensor,
    q_out_THD: Tensor,
    k_out_TGD: Tensor | None = None,
    v_out_TGD: Tensor | None = None,
) -> None:
    """Rotate queries and keys, and store keys and values in their slots.

    Rounds as ``model.phi3v.rope.rotate`` does in torch: both products and the sum to the dtype.

    Args:
        qkv_T: ``(T, (H + 2 G) * D)``, contiguous: queries, keys, values.
        cos_TD: in the dtype of ``qkv_T``; the second half of a row equals the first.
        slot_T: int32, block * 16 + offset; nothing is stored for a negative slot.
        cache_layer: ``(N, 2, G, B, D)``, contiguous.
        q_out_THD: rotated queries, contiguous.
        k_out_TGD, v_out_TGD: also written if given, both or neither.
    """
    tokens, heads, dim = q_out_THD.shape
    groups = cache_layer.shape[2]
    rows, per_program = (64, triton.next_power_of_2(heads + 2 * groups)) if INTERPRETED else (1, 16)

    def traffic() -> Traffic:
        stored = 2 * tokens * groups * dim * qkv_T.element_size()
        copied = stored if k_out_TGD is not None else 0
        angles = (cos_TD.nbytes + sin_TD.nbytes) // 2
        return Traffic(qkv_T.nbytes + angles + slot_T.nbytes, q_out_THD.nbytes + stored + copied)

    launch(
        split_rope_store_kernel,
        (triton.cdiv(tokens, rows), triton.cdiv(heads + 2 * groups, per_program)),
        qkv_T,
        cos_TD,
        sin_TD,
        slot_T,
        cache_layer,
        q_out_THD,
        k_out_TGD if k_out_TGD is not None else q_out_THD,
        v_out_TGD if v_out_TGD is not None else q_out_THD,
        tokens,
        traffic=traffic,
        COPIES=k_out_TGD is not None,
        HEADS=heads,
        GROUPS=groups,
        HALF=dim // 2,
        PADDED=triton.next_power_of_2(dim // 2),
        SLOTS=BLOCK,
        ROWS=rows,
        PER_PROGRAM=per_program,
        num_warps=4,
        enable_fp_fusion=False,  # round both products, as torch does
    )


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["slot_T"])
def split_rope_store_kernel(
    qkv_T,
    cos_TD,
    sin_TD,
    slot_T,
    cache_layer,
    q_out_THD,
    k_out_TGD,
    v_out_TGD,
    tokens,
    COPIES: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    PER_PROGRAM: tl.constexpr,
):
    """One program per ``ROWS`` tokens and ``PER_PROGRAM`` heads of queries, keys and values."""
    DIM: tl.constexpr = 2 * HALF
    TOTAL: tl.constexpr = HEADS + 2 * GROUPS
    token = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    head = tl.program_id(1) * PER_PROGRAM + tl.arange(0, PER_PROGRAM)
    d = tl.arange(0, PADDED)[None, None, :]
    in_rows = (token < tokens)[:, None, None] & (d < HALF)
    inside = in_rows & (head < TOTAL)[None, :, None]
    dtype = qkv_T.dtype.element_ty

    at = qkv_T + token[:, None, None] * (TOTAL * DIM) + head[None, :, None] * DIM + d
    first = tl.load(at, mask=inside, other=0.0)
    second = tl.load(at + HALF, mask=inside, other=0.0)
    angle = token[:, None, None] * DIM + d
    cos = tl.load(cos_TD + angle, mask=in_rows, other=0.0).to(tl.float32)
    sin = tl.load(sin_TD + angle, mask=in_rows, other=0.0).to(tl.float32)
    a, b = first.to(tl.float32), second.to(tl.float32)
    left = (a * cos).to(dtype).to(tl.float32) - (b * sin).to(dtype).to(tl.float32)
    right = (b * cos).to(dtype).to(tl.float32) + (a * sin).to(dtype).to(tl.float32)
    turned = (head < HEADS + GROUPS)[None, :, None]
    first = tl.where(turned, left.to(dtype), first)
    second = tl.where(turned, right.to(dtype), second)

    is_query = inside & (head < HEADS)[None, :, None]
    at = q_out_THD + token[:, None, None] * (HEADS * DIM) + head[None, :, None] * DIM + d
    tl.store(at, first, mask=is_query)
    tl.store(at + HALF, second, mask=is_query)

    stored = head - HEADS  # keys first, then values, as in the cache
    is_stored = inside & (stored >= 0)[None, :, None]
    slot = tl.load(slot_T + token, mask=token < tokens, other=-1).to(tl.int64)
    place = (slot // SLOTS) * (2 * GROUPS * SLOTS * DIM) + (slot % SLOTS) * DIM
    at = cache_layer + place[:, None, None] + stored[None, :, None] * (SLOTS * DIM) + d
    has_slot = is_stored & (slot >= 0)[:, None, None]
    tl.store(at, first, mask=has_slot)
    tl.store(at + HALF, second, mask=has_slot)
    if COPIES:
        at = token[:, None, None] * (GROUPS * DIM) + stored[None, :, None] * DIM + d
        is_key = is_stored & (stored < GROUPS)[None, :, None]
        tl.store(k_out_TGD + at, first, mask=is_key)
        tl.store(k_out_TGD + at + HALF, second, mask=is_key)
        is_value = is_stored & (stored >= GROUPS)[None, :, None]
        tl.store(v_out_TGD + (at - GROUPS * DIM), first, mask=is_value)
        tl.store(v_out_TGD + (at - GROUPS * DIM) + HALF, second, mask=is_value)

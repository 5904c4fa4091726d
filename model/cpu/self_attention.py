"""Self-attention of the vision tower, with the tiles of linear layers.

Shape suffixes: C crops, N patches of a crop, W width of all heads, D head dim, Q queries of a tile.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.cpu.compiler.jit import Kernel, address, array, inner, read, record_type, take, take_next
from model.cpu.compiler.vectors import LANES
from model.cpu.elementwise import assign, exp
from model.cpu.linear.linear import TiledLinear
from model.cpu.linear.microkernel import PANEL, TILE_ROWS, compute_tile

_FIELDS = dict.fromkeys(("q", "k", "v", "out", "crops", "patches", "heads", "head_dim"), np.intp)


class SelfAttention(nn.Module):
    """Replaces transformers' ``CLIPAttention`` on the CPU; the head dim must be even."""

    def __init__(
        self, q: TiledLinear, k: TiledLinear, v: TiledLinear, out: TiledLinear, heads: int
    ) -> None:
        super().__init__()
        self._q, self._k, self._v, self._out = q, k, v, out
        self._heads = heads

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Attention output ``(C, N, W)`` for hidden states ``(C, N, W)``, without a mask."""
        crops, patches, width = hidden_states.shape
        q, k, v = (project(hidden_states) for project in (self._q, self._k, self._v))
        out = torch.empty_like(q)
        kernel = attention_kernel(q.dtype is torch.bfloat16)
        records = kernel.records(
            q=address(q),
            k=address(k),
            v=address(v),
            out=address(out),
            crops=crops,
            patches=patches,
            heads=self._heads,
            head_dim=width // self._heads,
        )
        kernel.run(records)
        return self._out(out), None


@cache
def attention_kernel(bfloat16: bool) -> Kernel:
    """The kernel for a dtype; an item of work is one head of one crop."""
    number: Any = np.uint16 if bfloat16 else np.float32
    word: Any = np.uint32 if bfloat16 else np.float32
    per_word = 2 if bfloat16 else 1
    kind = record_type(_FIELDS)

    def attention(record: int) -> None:
        a = read(record, kind)
        patches, dim, width = a.patches, a.head_dim, a.heads * a.head_dim
        shape = (a.crops, patches, width)
        q_CNW, out_CNW = array(a.q, shape, number), array(a.out, shape, number)
        words = (a.crops, patches, width // per_word)
        k_CNW, v_CNW = array(a.k, words, word), array(a.v, shape, number)
        key_panels, wide_panels = -(-patches // PANEL), dim // PANEL
        narrow_panels = -(-(dim - wide_panels * PANEL) // LANES)  # e.g. 64 = 48 + 16
        value_words = -(-patches // per_word)
        keys = _aligned(key_panels, dim // per_word, PANEL, word)
        wide = _aligned(wide_panels, value_words, PANEL, word)
        narrow = _aligned(narrow_panels, value_words, LANES, word)
        scores_QN = np.empty((TILE_ROWS, key_panels * PANEL), np.float32)
        weights_QN = np.zeros((TILE_ROWS, value_words * per_word), number)
        tile = np.empty((TILE_ROWS, PANEL), np.float32)
        item = take(record, 0)
        while item < a.crops * a.heads:
            crop, first_dim = item // a.heads, item % a.heads * dim
            head_words = k_CNW[crop, :, first_dim // per_word : (first_dim + dim) // per_word]
            _pack_keys(head_words, keys)
            v_ND = v_CNW[crop, :, first_dim : first_dim + dim]
            _pack_values(v_ND[:, : wide_panels * PANEL], wide, per_word)
            _pack_values(v_ND[:, wide_panels * PANEL :], narrow, per_word)
            q_ND = q_CNW[crop, :, first_dim : first_dim + dim]
            for first in range(0, patches, TILE_ROWS):
                rows = min(TILE_ROWS, patches - first)
                for panel in range(key_panels):
                    start = panel * PANEL
                    compute_tile(
                        q_ND, first, rows, keys[panel], scores_QN[:, start : start + PANEL]
                    )
                for row in range(rows):
                    _softmax(scores_QN[row, :patches], weights_QN[row], dim)
                out_QD = out_CNW[crop, first : first + rows, first_dim : first_dim + dim]
                for panel in range(wide_panels):
                    compute_tile(weights_QN, 0, rows, wide[panel], tile)
                    _store(tile, out_QD, panel * PANEL, PANEL)
                for panel in range(narrow_panels):
                    compute_tile(weights_QN, 0, rows, narrow[panel], tile, False, True)
                    _store(tile, out_QD, wide_panels * PANEL + panel * LANES, LANES)
            item = take_next(record, 0)

    return Kernel(attention, _FIELDS)


@inner
def _store(tile, out_QD, first, columns):
    """Store a tile's rows in the columns from ``first``, up to the output's width."""
    for row in range(out_QD.shape[0]):
        out_D = out_QD[row, first : first + columns]
        for column in range(out_D.shape[0]):
            assign(out_D, column, tile[row, column])


@inner
def _aligned(panels, words, columns, word):
    """A zeroed buffer for packed panels, aligned to 64 bytes."""
    size = panels * words * columns
    buffer = np.zeros(size + 16, word)
    skip = (64 - buffer.ctypes.data % 64) % 64 // 4
    return buffer[skip : skip + size].reshape(panels, words, columns)


@inner
def _pack_keys(words_NK, panels):
    """See ``packing.pack``; a key is a column."""
    for n in range(words_NK.shape[0]):
        panel, column = n // PANEL, n % PANEL
        for k in range(words_NK.shape[1]):
            panels[panel, k, column] = words_NK[n, k]


@inner
def _pack_values(values_ND, panels, per_word):
    """See ``packing.pack``; a dimension is a column, and K runs over the patches."""
    columns = panels.shape[2]
    halves = panels.view(values_ND.dtype)  # (panels, words, columns * per_word)
    for panel in range(panels.shape[0]):
        part_ND = values_ND[:, panel * columns : (panel + 1) * columns]
        for n in range(part_ND.shape[0]):
            word, half = n // per_word, n % per_word
            for d in range(part_ND.shape[1]):
                halves[panel, word, d * per_word + half] = part_ND[n, d]


@inner
def _softmax(scores_N, weights_N, dim):
    """Softmax of scores divided by the square root of the head dim."""
    scale = np.float32(1) / np.sqrt(np.float32(dim))
    largest = np.float32(-np.inf)
    for n in range(scores_N.shape[0]):
        largest = max(largest, scores_N[n])
    total = np.float32(0)
    for n in range(scores_N.shape[0]):
        scores_N[n] = exp((scores_N[n] - largest) * scale)
        total += scores_N[n]
    inverse = np.float32(1) / total
    for n in range(scores_N.shape[0]):
        assign(weights_N, n, scores_N[n] * inverse)

"""A decoder layer around its attention, in two kernels, and the logits.

Hidden states are float32 between layers; what is multiplied is float32 or bfloat16, as the weights.

Shape suffixes: T tokens, E hidden size, H query heads, G key-value heads, D head dim, I intermediate
size, S tokens that want logits, V vocabulary, N outputs of a product, K inputs of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model.cpu.elementwise import copy_row, rms_norm, rotate
from model.cpu.jit import Kernel, array, barrier, inner, read, record_type, take
from model.cpu.microkernel import PANEL
from model.cpu.products import gated_product, multiply, multiply_add


@inner
def _norm_rows(record, counter, in_TE, weight_E, epsilon, out_TE):
    row = take(record, counter)
    while row < in_TE.shape[0]:
        rms_norm(in_TE[row], weight_E, epsilon, out_TE[row])
        row = take(record, counter)


class DecoderKernels:
    """The kernels for one dtype of weights.

    Attributes:
        before: norm, query, key and value projection, rotation.
        after: output projection, norm, gated MLP, both added to the hidden states.
        logits: norm and head.
    """

    def __init__(self, bfloat16: bool) -> None:
        number = np.uint16 if bfloat16 else np.float32
        word = np.uint32 if bfloat16 else np.float32
        self.before = _before(number, word)
        self.after = _after(number, word)
        self.logits = _logits(number, word)


def _fields(*addresses: str, sizes: tuple[str, ...]) -> dict[str, Any]:
    return {
        **dict.fromkeys(addresses, np.intp),
        **dict.fromkeys(sizes, np.intp),
        "epsilon": np.float32,
    }


def _before(number: Any, word: Any) -> Kernel:
    fields = _fields(
        *("hidden", "norm", "qkv_weight", "normed", "qkv", "cos", "sin", "q", "k", "v"),
        sizes=("tokens", "width", "heads", "groups", "head_dim", "qkv_panels", "qkv_words"),
    )
    kind = record_type(fields)

    def before(record: int) -> None:
        a = read(record, kind)
        dim, heads, groups = a.head_dim, a.heads, a.groups
        hidden_TE = array(a.hidden, (a.tokens, a.width), np.float32)
        normed_TE = array(a.normed, (a.tokens, a.width), number)
        _norm_rows(record, 0, hidden_TE, array(a.norm, a.width, np.float32), a.epsilon, normed_TE)
        barrier()
        weight = array(a.qkv_weight, (a.qkv_panels, a.qkv_words, PANEL), word)
        qkv_TND = array(a.qkv, (a.tokens, heads + 2 * groups, dim), np.float32)
        multiply(
            record, 1, normed_TE, weight, qkv_TND.reshape(a.tokens, (heads + 2 * groups) * dim)
        )
        barrier()
        cos_TD = array(a.cos, (a.tokens, dim), np.float32)
        sin_TD = array(a.sin, (a.tokens, dim), np.float32)
        q_THD = array(a.q, (a.tokens, heads, dim), np.float32)
        k_TGD = array(a.k, (a.tokens, groups, dim), number)
        v_TGD = array(a.v, (a.tokens, groups, dim), number)
        t = take(record, 2)
        while t < a.tokens:
            for h in range(heads):
                rotate(qkv_TND[t, h], cos_TD[t], sin_TD[t], q_THD[t, h])
            for g in range(groups):
                rotate(qkv_TND[t, heads + g], cos_TD[t], sin_TD[t], k_TGD[t, g])
                copy_row(qkv_TND[t, heads + groups + g], v_TGD[t, g])
            t = take(record, 2)

    return Kernel(before, fields)


def _after(number: Any, word: Any) -> Kernel:
    fields = _fields(
        *("hidden", "attended", "inputs", "output_weight", "norm", "pairs_weight", "gated"),
        "down_weight",
        sizes=(
            *("tokens", "width", "inner_width", "intermediate"),
            *("output_panels", "output_words", "pairs_panels", "pairs_words"),
            *("down_panels", "down_words"),
        ),
    )
    kind = record_type(fields)

    def after(record: int) -> None:
        a = read(record, kind)
        hidden_TE = array(a.hidden, (a.tokens, a.width), np.float32)
        attended_TK = array(a.attended, (a.tokens, a.inner_width), np.float32)
        inputs_TK = array(a.inputs, (a.tokens, a.inner_width), number)
        t = take(record, 0)
        while t < a.tokens:
            copy_row(attended_TK[t], inputs_TK[t])
            t = take(record, 0)
        barrier()
        weight = array(a.output_weight, (a.output_panels, a.output_words, PANEL), word)
        multiply_add(record, 1, inputs_TK, weight, hidden_TE)
        barrier()
        normed_TE = array(a.inputs, (a.tokens, a.width), number)  # what was there is used up
        _norm_rows(record, 2, hidden_TE, array(a.norm, a.width, np.float32), a.epsilon, normed_TE)
        barrier()
        pairs = array(a.pairs_weight, (a.pairs_panels, a.pairs_words, PANEL), word)
        gated_TI = array(a.gated, (a.tokens, a.intermediate), number)
        gated_product(record, 3, normed_TE, pairs, gated_TI)
        barrier()
        down = array(a.down_weight, (a.down_panels, a.down_words, PANEL), word)
        multiply_add(record, 4, gated_TI, down, hidden_TE)

    return Kernel(after, fields)


def _logits(number: Any, word: Any) -> Kernel:
    fields = _fields(
        *("hidden", "norm", "normed", "head_weight", "logits"),
        sizes=("tokens", "width", "vocabulary", "head_panels", "head_words"),
    )
    kind = record_type(fields)

    def logits(record: int) -> None:
        a = read(record, kind)
        hidden_SE = array(a.hidden, (a.tokens, a.width), np.float32)
        normed_SE = array(a.normed, (a.tokens, a.width), number)
        _norm_rows(record, 0, hidden_SE, array(a.norm, a.width, np.float32), a.epsilon, normed_SE)
        barrier()
        weight = array(a.head_weight, (a.head_panels, a.head_words, PANEL), word)
        logits_SV = array(a.logits, (a.tokens, a.vocabulary), np.float32)
        multiply(record, 1, normed_SE, weight, logits_SV)

    return Kernel(logits, fields)

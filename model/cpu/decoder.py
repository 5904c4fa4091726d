"""Kernels of decoder layers (two around attention, or one for all layers) and of the logits.

Hidden states are float32 between layers; products use the weights' dtype, float32 or bfloat16.

Shape suffixes: T tokens, E hidden size, H query heads, G key-value heads, D head dim, I intermediate
size, S tokens that need logits, V vocabulary, N outputs of a product, K inputs of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from model.cpu import attention
from model.cpu.compiler.jit import Kernel, array, inner, read, record_type, take, take_next, wait
from model.cpu.elementwise import copy_row, rms_norm, rotate
from model.cpu.linear.microkernel import PANEL
from model.cpu.linear.products import gated_product, multiply, multiply_add
from model.cpu.linear.quantized import weights


def _weight(name: str) -> tuple[str, ...]:
    """The fields of a weight, for ``quantized.weights``; some stay 0 for unquantized weights."""
    return tuple(f"{name}_{part}" for part in ("weight", "scales", "panels", "words", "groups"))


def _fields(names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a record: the norms' epsilon, addresses and sizes."""
    return {"epsilon": np.float32, **dict.fromkeys(names, np.intp)}


_QKV = ("hidden", "norm", "normed", "qkv", "cos", "sin", "q", "k", "v")
_QKV_SIZES = ("tokens", "width", "heads", "groups", "head_dim")
_MLP = ("hidden", "attended", "inputs", "norm", "gated")
_MLP_SIZES = ("tokens", "width", "inner_width", "intermediate")
_HEAD = ("hidden", "norm", "normed", "logits")
_HEAD_SIZES = ("tokens", "width", "vocabulary")
BEFORE = _fields(_QKV + _QKV_SIZES + _weight("qkv"))
AFTER = _fields(_MLP + _MLP_SIZES + _weight("output") + _weight("pairs") + _weight("down"))
LOGITS = _fields(_HEAD + _HEAD_SIZES + _weight("head"))
STEP = dict.fromkeys(("layers", "before", "attention", "after"), np.intp)
_BEFORE_KIND, _AFTER_KIND = record_type(BEFORE), record_type(AFTER)
_LOGITS_KIND, _STEP_KIND = record_type(LOGITS), record_type(STEP)
_BEFORE_SIZE, _AFTER_SIZE = _BEFORE_KIND.itemsize, _AFTER_KIND.itemsize
_ATTENTION_SIZE = attention.KIND.itemsize


class DecoderKernels:
    """The kernels for one dtype of products and one type of weights.

    Args:
        bfloat16: whether products are in bfloat16, else float32.
        quantized: type of packed quantized weights (see ``quantized.weights``), or None.

    Attributes:
        before: norm, query, key and value projection, rotation.
        after: output projection, norm and gated MLP, each added to the hidden states.
        logits: norm and head.
        step: all layers, with ``attention``; takes the address of the first layer's records, which
            must be contiguous.
    """

    def __init__(self, bfloat16: bool, quantized: Any = None) -> None:
        number: Any = np.uint16 if bfloat16 else np.float32
        word: Any = np.uint32 if bfloat16 else np.float32
        kind: Any = quantized or word

        def before(record: int) -> None:
            _before(record, number, kind)

        def after(record: int) -> None:
            _after(record, number, kind)

        def logits(record: int) -> None:
            _logits(record, number, word)

        def step(record: int) -> None:
            a = read(record, _STEP_KIND)
            for layer in range(a.layers):
                _before(a.before + layer * _BEFORE_SIZE, number, kind)
                attention.attend(a.attention + layer * _ATTENTION_SIZE, number)
                _after(a.after + layer * _AFTER_SIZE, number, kind)

        self.before = Kernel(before, BEFORE)
        self.after = Kernel(after, AFTER)
        self.logits = Kernel(logits, LOGITS)
        self.step = Kernel(step, STEP)


@inner
def _norm_rows(record, phase, in_TE, weight_E, epsilon, out_TE):
    row = take(record, phase)
    while row < in_TE.shape[0]:
        rms_norm(in_TE[row], weight_E, epsilon, out_TE[row])
        row = take_next(record, phase)
    wait(record, phase, in_TE.shape[0])


@inner
def _before(record, number, kind):
    a = read(record, _BEFORE_KIND)
    dim, heads, groups = a.head_dim, a.heads, a.groups
    hidden_TE = array(a.hidden, (a.tokens, a.width), np.float32)
    normed_TE = array(a.normed, (a.tokens, a.width), number)
    _norm_rows(record, 0, hidden_TE, array(a.norm, a.width, np.float32), a.epsilon, normed_TE)
    weight = weights(a.qkv_weight, a.qkv_scales, a.qkv_panels, a.qkv_words, a.qkv_groups, kind)
    qkv_TND = array(a.qkv, (a.tokens, heads + 2 * groups, dim), np.float32)
    multiply(record, 1, normed_TE, weight, qkv_TND.reshape(a.tokens, (heads + 2 * groups) * dim))
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
        t = take_next(record, 2)
    wait(record, 2, a.tokens)


@inner
def _after(record, number, kind):
    a = read(record, _AFTER_KIND)
    hidden_TE = array(a.hidden, (a.tokens, a.width), np.float32)
    attended_TK = array(a.attended, (a.tokens, a.inner_width), np.float32)
    inputs_TK = array(a.inputs, (a.tokens, a.inner_width), number)
    t = take(record, 0)
    while t < a.tokens:
        copy_row(attended_TK[t], inputs_TK[t])
        t = take_next(record, 0)
    wait(record, 0, a.tokens)
    weight = weights(
        a.output_weight, a.output_scales, a.output_panels, a.output_words, a.output_groups, kind
    )
    multiply_add(record, 1, inputs_TK, weight, hidden_TE)
    normed_TE = array(a.inputs, (a.tokens, a.width), number)  # reuses the memory of the inputs
    _norm_rows(record, 2, hidden_TE, array(a.norm, a.width, np.float32), a.epsilon, normed_TE)
    pairs = weights(
        a.pairs_weight, a.pairs_scales, a.pairs_panels, a.pairs_words, a.pairs_groups, kind
    )
    gated_TI = array(a.gated, (a.tokens, a.intermediate), number)
    gated_product(record, 3, normed_TE, pairs, gated_TI)
    down = weights(a.down_weight, a.down_scales, a.down_panels, a.down_words, a.down_groups, kind)
    multiply_add(record, 4, gated_TI, down, hidden_TE)


@inner
def _logits(record, number, word):
    a = read(record, _LOGITS_KIND)
    hidden_SE = array(a.hidden, (a.tokens, a.width), np.float32)
    normed_SE = array(a.normed, (a.tokens, a.width), number)
    _norm_rows(record, 0, hidden_SE, array(a.norm, a.width, np.float32), a.epsilon, normed_SE)
    weight = array(a.head_weight, (a.head_panels, a.head_words, PANEL), word)
    logits_SV = array(a.logits, (a.tokens, a.vocabulary), np.float32)
    multiply(record, 1, normed_SE, weight, logits_SV)

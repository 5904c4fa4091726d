"""The innermost loops of attention, as LLVM code: queries with one block of keys or values.

Blocks hold float32, or bfloat16 as uint16 (the upper half of a float32). Works on any CPU.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from model.cpu.compiler.vectors import FLOATS, LANES, everywhere, loop, multiply_add, widened

BLOCK = LANES  # slots

_INT, _WORD = ir.IntType(64), ir.IntType(32)
_HALVES = ir.VectorType(ir.IntType(16), BLOCK)


def score_keys(q_QD, rows, keys_DB, scores_QL, first):
    """Unscaled dot products of ``rows`` float32 queries with a block's keys.

    Args:
        q_QD: queries ``(Q, D)``; rows may have any stride.
        rows: 8, 4 or 1; results do not depend on it.
        keys_DB: the block.
        scores_QL: output, written at 16 columns from ``first``.
        first: the block's first position.
    """
    raise NotImplementedError


def add_values(weights_QL, rows, first, count, values_BD, output_QD):
    """Add a block's first ``count`` values, weighted by the columns from ``first``, to the outputs."""
    raise NotImplementedError


@overload(score_keys)
def _score_keys(q_QD, rows, keys_DB, scores_QL, first):
    eight, four, one = _SCORE[keys_DB.dtype == types.uint16]

    def score(q_QD, rows, keys_DB, scores_QL, first):
        q, keys, scores = q_QD.ctypes.data, keys_DB.ctypes.data, scores_QL.ctypes.data + 4 * first
        q_stride, score_stride, dim = q_QD.strides[0], scores_QL.strides[0], q_QD.shape[1]
        if rows == 8:
            eight(q, q_stride, keys, scores, score_stride, dim)
        elif rows == 4:
            four(q, q_stride, keys, scores, score_stride, dim)
        else:
            one(q, q_stride, keys, scores, score_stride, dim)

    return score


@overload(add_values)
def _add_values(weights_QL, rows, first, count, values_BD, output_QD):
    eight, four, one = _ADD[values_BD.dtype == types.uint16]

    def add(weights_QL, rows, first, count, values_BD, output_QD):
        weights, stride = weights_QL.ctypes.data + 4 * first, weights_QL.strides[0]
        dim, size, out_stride = output_QD.shape[1], values_BD.itemsize, output_QD.strides[0]
        for d in range(0, dim, BLOCK):
            values, output = values_BD.ctypes.data + size * d, output_QD.ctypes.data + 4 * d
            if rows == 8:
                eight(weights, stride, values, dim, count, output, out_stride)
            elif rows == 4:
                four(weights, stride, values, dim, count, output, out_stride)
            else:
                one(weights, stride, values, dim, count, output, out_stride)

    return add


def _load(builder: Any, address: Any, bfloat16: bool) -> Any:
    """Load 16 stored numbers as floats."""
    if not bfloat16:
        return builder.load(builder.inttoptr(address, FLOATS.as_pointer()), align=4)
    halves = builder.load(builder.inttoptr(address, _HALVES.as_pointer()), align=2)
    return widened(builder, halves)


def _everywhere(builder: Any, address: Any) -> Any:
    """Broadcast a float to all lanes."""
    return everywhere(builder, builder.inttoptr(address, _WORD.as_pointer()), FLOATS)


def _row(builder: Any, address: Any, row: int, stride: Any) -> Any:
    return builder.add(address, builder.mul(stride, _INT(row)))


def _make_score(rows: int, bfloat16: bool) -> Any:
    """Create ``(queries, stride, keys, scores, stride, dim)``; strides in bytes, dim even."""
    size, chains = (2 if bfloat16 else 4), 2

    @intrinsic
    def score(
        typingctx: Any, q: Any, q_stride: Any, keys: Any, scores: Any, stride: Any, dim: Any
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            q, q_stride, keys, scores, stride, dim = args

            def body(d: Any, totals: list[Any]) -> list[Any]:
                new = []
                for chain in range(chains):  # independent sums, to hide latency
                    at = builder.add(d, _INT(chain))
                    stored = builder.add(keys, builder.mul(at, _INT(BLOCK * size)))
                    lanes = _load(builder, stored, bfloat16)
                    for row in range(rows):
                        query = builder.add(
                            _row(builder, q, row, q_stride), builder.mul(at, _INT(4))
                        )
                        total = totals[chain * rows + row]
                        new.append(multiply_add(builder, total, _everywhere(builder, query), lanes))
                return new

            zeros = ir.Constant(FLOATS, [0.0] * BLOCK)
            totals = loop(builder, dim, chains, [zeros] * (chains * rows), body)
            for row in range(rows):
                total = builder.fadd(totals[row], totals[rows + row])
                target = builder.inttoptr(_row(builder, scores, row, stride), FLOATS.as_pointer())
                builder.store(total, target, align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), codegen

    return score


def _make_add(rows: int, bfloat16: bool) -> Any:
    """Create ``(weights, stride, values, dim, count, outputs, stride)`` for 16 dimensions."""
    size = 2 if bfloat16 else 4

    @intrinsic
    def add(
        typingctx: Any,
        weights: Any,
        stride: Any,
        values: Any,
        dim: Any,
        count: Any,
        output: Any,
        output_stride: Any,
    ) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            weights, stride, values, dim, count, output, output_stride = args

            def body(i: Any, totals: list[Any]) -> list[Any]:
                stored = builder.add(values, builder.mul(i, builder.mul(dim, _INT(size))))
                lanes = _load(builder, stored, bfloat16)
                new = []
                for row, total in enumerate(totals):
                    weight = builder.add(
                        _row(builder, weights, row, stride), builder.mul(i, _INT(4))
                    )
                    new.append(multiply_add(builder, total, _everywhere(builder, weight), lanes))
                return new

            pointers = [
                builder.inttoptr(_row(builder, output, row, output_stride), FLOATS.as_pointer())
                for row in range(rows)
            ]
            start = [builder.load(pointer, align=4) for pointer in pointers]
            for pointer, total in zip(pointers, loop(builder, count, 1, start, body), strict=True):
                builder.store(total, pointer, align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7), codegen

    return add


_SCORE, _ADD = (
    {bfloat16: tuple(make(rows, bfloat16) for rows in (8, 4, 1)) for bfloat16 in (True, False)}
    for make in (_make_score, _make_add)
)

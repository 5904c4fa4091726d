"""LLVM code shared by kernels: AVX-512 vectors, and loops with sums in registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

LANES = 16  # 32-bit words per register

_INT, _WORD = ir.IntType(64), ir.IntType(32)
FLOATS, WORDS = (ir.VectorType(kind, LANES) for kind in (ir.FloatType(), _WORD))


class _BFloat(ir.Type):
    """LLVM's bfloat type, which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


PAIRS = ir.VectorType(_BFloat(), 2 * LANES)


def everywhere(builder: Any, pointer: Any, operand: Any) -> Any:
    """Broadcast the word at a pointer to all lanes."""
    undefined = ir.Constant(WORDS, ir.Undefined)
    one = builder.insert_element(undefined, builder.load(pointer, align=4), _WORD(0))
    lanes = builder.shuffle_vector(one, undefined, ir.Constant(WORDS, [0] * LANES))
    return builder.bitcast(lanes, operand)


def multiply_add(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """``total + a * b``, for floats or pairs of bfloat16."""
    pairs = a.type is PAIRS
    name = "llvm.x86.avx512bf16.dpbf16ps.512" if pairs else "llvm.fma.v16f32"
    kind = ir.FunctionType(FLOATS, [FLOATS, a.type, a.type])
    product = builder.module.declare_intrinsic(name, (), kind)
    return builder.call(product, [total, a, b] if pairs else [a, b, total])


def widened(builder: Any, halves: Any) -> Any:
    """Convert bfloat16, held as 16-bit integers, to float32."""
    words = builder.zext(halves, WORDS)
    return builder.bitcast(builder.shl(words, ir.Constant(WORDS, [16] * LANES)), FLOATS)


def loop(
    builder: Any,
    count: Any,
    step: int,
    totals: list[Any],
    body: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """Emit ``totals = body(i, totals)`` for i in ``range(0, count, step)``; ``count`` is positive."""
    before = builder.block
    again, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.branch(again)
    builder.position_at_end(again)
    index = builder.phi(_INT)
    index.add_incoming(_INT(0), before)
    running = [builder.phi(total.type) for total in totals]
    for total, start in zip(running, totals, strict=True):
        total.add_incoming(start, before)
    new = body(index, running)
    following = builder.add(index, _INT(step))
    index.add_incoming(following, again)
    for total, value in zip(running, new, strict=True):
        total.add_incoming(value, again)
    builder.cbranch(builder.icmp_signed("<", following, count), again, end)
    builder.position_at_end(end)
    return new

"""LLVM code that dequantizes panels into a buffer, or multiplies them with a single row directly.

With int8 the numbers themselves are multiplied, because float32 and bfloat16 hold them exactly, and the
sums are scaled. With int4, where each group of inputs has its own scale and offset, weights are
dequantized first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from model.cpu.compiler.vectors import (
    FLOATS,
    LANES,
    PAIRS,
    WORDS,
    everywhere,
    loop,
    multiply_add,
    widened,
)
from model.cpu.linear.microkernel import PANEL, VECTORS

PART = 128  # words of a panel that are dequantized together: 24 KiB, to fit into the L1 cache
HALVES = 2 * VECTORS  # of a panel: 8 columns, with two numbers of each interleaved

_BYTE, _HALF, _WORD, _INT = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_BYTES = ir.VectorType(_BYTE, LANES)


def _at(builder: Any, address: Any, offset: int, kind: Any) -> Any:
    """A pointer of type ``kind``, ``offset`` bytes after an address."""
    return builder.inttoptr(builder.add(address, _INT(offset)), kind.as_pointer())


def _constant(value: int) -> Any:
    return ir.Constant(WORDS, [value] * LANES)


def _fetch(builder: Any, address: Any, ahead: int, width: int) -> None:
    """Prefetch what is needed next."""
    fetch = builder.module.declare_intrinsic(
        "llvm.prefetch.p0", (), ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), *[_WORD] * 3])
    )
    for at in range(ahead, ahead + width, 64):
        # For reading, into the L2 cache.
        builder.call(fetch, [_at(builder, address, at, _BYTE), _WORD(0), _WORD(2), _WORD(1)])


class _Numbers:
    """Storage format of a panel's numbers.

    Attributes:
        width: bytes per row of a panel.
        pairs: pairs of inputs per row.
        kind, align: type of a load of half a vector's columns, and its alignment in bytes.
    """

    width: int
    pairs: int
    kind: Any
    align: int

    def load(self, builder: Any, address: Any) -> list[Any]:
        """Load a row, in halves."""
        step = self.width // HALVES
        return [
            builder.load(_at(builder, address, step * half, self.kind), align=self.align)
            for half in range(HALVES)
        ]


class _EightBits(_Numbers):
    """int8: two inputs of a column in two bytes."""

    width, pairs, kind, align = 2 * PANEL, 1, _BYTES, 1

    def begin(self, builder: Any, scales: Any) -> None:
        """Does nothing, because the sums are scaled later."""

    def numbers(self, builder: Any, row: list[Any], half: int, pair: int) -> Any:
        """The float32 numbers of a half."""
        return builder.sitofp(builder.sext(row[half], WORDS), FLOATS)


class _FourBits(_Numbers):
    """int4: sixteen inputs of a column in eight bytes, packed by ``packing.nibbles``."""

    width, pairs, kind, align = 8 * PANEL, 8, WORDS, 64

    def begin(self, builder: Any, scales: Any) -> None:
        """Load a group's scales and offsets."""
        lanes = ir.Constant(WORDS, [lane // 2 for lane in range(LANES)])

        def load(at: int) -> Any:
            halves = ir.VectorType(_HALF, LANES // 2)
            eight = builder.load(_at(builder, scales, 2 * at, halves), align=2)
            return widened(builder, builder.shuffle_vector(eight, eight, lanes))

        self._scale = [load(half * LANES // 2) for half in range(HALVES)]
        self._offset = [load(PANEL + half * LANES // 2) for half in range(HALVES)]
        self._table = ir.Constant(FLOATS, [number - 8.0 for number in range(16)])
        declare, call = builder.module.declare_intrinsic, ir.FunctionType
        # A lookup by the lowest 4 bits of each lane.
        self._look_up = declare("llvm.x86.avx512.permvar.sf.512", (), call(FLOATS, [FLOATS, WORDS]))

    def numbers(self, builder: Any, row: list[Any], half: int, pair: int) -> Any:
        """The float32 weights of a half."""
        shifted = builder.lshr(row[half], _constant(4 * pair)) if pair else row[half]
        number = builder.call(self._look_up, [self._table, shifted])
        return multiply_add(builder, self._offset[half], number, self._scale[half])


def _pairs_of(builder: Any, low: Any, high: Any) -> list[Any]:
    """Round halves to a vector of pairs of bfloat16 with AVX512-BF16."""
    kind = ir.FunctionType(PAIRS, [FLOATS, FLOATS])
    name = "llvm.x86.avx512bf16.cvtne2ps2bf16.512"
    return [builder.call(builder.module.declare_intrinsic(name, (), kind), [high, low])]


def _rows_of(builder: Any, low: Any, high: Any) -> list[Any]:
    """Deinterleave halves into a vector of the first numbers and one of the second."""
    lanes = [[2 * lane + number for lane in range(LANES)] for number in range(2)]
    return [builder.shuffle_vector(low, high, ir.Constant(WORDS, each)) for each in lanes]


# Called with the index of a pair, the index of a vector, its words, and the previous call's result.
Use = Callable[[Any, int, list[Any], Any], Any]


def _for_each_pair(
    builder: Any,
    bits: int,
    bfloat16: bool,
    addresses: tuple[Any, Any, Any],
    begun: list[Any],
    use: Use,
) -> list[Any]:
    """Emit a loop over a group of a panel that calls ``use`` for each pair of inputs.

    Args:
        builder: emits the code.
        bits: 8 or 4.
        bfloat16: whether words are pairs of bfloat16, else float32 (two per pair).
        addresses: of the numbers, and of scales and offsets; and the number of rows.
        begun: initial value for ``use``, per vector; may be empty.
        use: see ``Use``.

    Returns:
        the last results of ``use``, per vector.
    """
    stored, scales, rows = addresses
    numbers: Any = _EightBits() if bits == 8 else _FourBits()
    combined = _pairs_of if bfloat16 else _rows_of
    numbers.begin(builder, scales)

    def read(index: Any, values: list[Any]) -> list[Any]:
        address = builder.add(stored, builder.mul(index, _INT(numbers.width)))
        _fetch(builder, address, PART // numbers.pairs * numbers.width, numbers.width)
        row = numbers.load(builder, address)
        new = []
        for vector in range(VECTORS):  # one at a time, to save registers
            total = values[vector] if values else None
            for pair in range(numbers.pairs):
                number = builder.add(builder.mul(index, _INT(numbers.pairs)), _INT(pair))
                low, high = (
                    numbers.numbers(builder, row, 2 * vector + half, pair) for half in range(2)
                )
                total = use(number, vector, combined(builder, low, high), total)
            new += [total] if values else []
        return new

    return loop(builder, rows, 1, begun, read)


def _make(bits: int, bfloat16: bool) -> Any:
    @intrinsic
    def make(typingctx: Any, stored: Any, scales: Any, rows: Any, room: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            *addresses, room = args

            def store(pair: Any, vector: int, words: list[Any], _: Any) -> None:
                row = builder.add(room, builder.mul(pair, _INT(4 * PANEL * len(words))))
                for number, word in enumerate(words):
                    at = 4 * (PANEL * number + LANES * vector)
                    builder.store(word, _at(builder, row, at, word.type), align=64)

            _for_each_pair(builder, bits, bfloat16, tuple(addresses), [], store)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 4), codegen

    return make


def _multiply(bits: int, bfloat16: bool) -> Any:
    @intrinsic
    def multiply(typingctx: Any, stored: Any, scales: Any, rows: Any, x: Any, sums: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            *addresses, x, sums = args
            places = [_at(builder, sums, 4 * LANES * vector, FLOATS) for vector in range(VECTORS)]

            def add(pair: Any, vector: int, words: list[Any], total: Any) -> Any:
                inputs = builder.add(x, builder.mul(pair, _INT(4 * len(words))))
                for number, word in enumerate(words):
                    place = _at(builder, inputs, 4 * number, _WORD)
                    value = everywhere(builder, place, word.type)
                    total = multiply_add(builder, total, value, word)
                return total

            begun = [builder.load(place, align=4) for place in places]
            totals = _for_each_pair(builder, bits, bfloat16, tuple(addresses), begun, add)
            for total, place in zip(totals, places, strict=True):
                builder.store(total, place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), codegen

    return multiply


_KINDS = [(bits, bfloat16) for bits in (8, 4) for bfloat16 in (True, False)]

# Functions by bits, and by whether products are in bfloat16 (else float32). Arguments: addresses of a
# panel's rows of numbers, and of ``(2, 48)`` bfloat16 scales and offsets (int4 only); the number of
# rows; and
# - the address of the output, in the format of ``microkernel.compute_tile``,
MAKE = {kind: _make(*kind) for kind in _KINDS}
# - the addresses of the inputs of one row, and of 48 float32 sums to add to, in the same order.
MULTIPLY = {kind: _multiply(*kind) for kind in _KINDS}

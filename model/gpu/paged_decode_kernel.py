"""The kernel of ``paged_decode``; see there for what it computes.

The head dim is held as two tiles, because a tile's sides are powers of 2: 96 is 64 (``FIRST``) and 32
(``REST``). A ``REST`` of 0 means that one tile is enough; the second is then not used.

Shape suffixes besides those of ``paged_decode``: M query rows of a program, P positions of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Compiled once for all values, and for all addresses of what may be a slice.
SIZES = ("sequences", "width", "splits", "max_rows")
SLICES = ("length_S", "query_start_S1")


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SLICES)
def paged_decode_kernel(
    q_THD,
    cache_layer,
    table_SW,
    length_S,
    query_start_S1,
    output,
    largest,
    total,
    finished,
    out_THD,
    sequences,
    width,
    splits,
    max_rows,
    scale,
    RAGGED: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    SEQUENCES: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per share of all splits, key-value head, and ``ROWS`` query rows.

    A query row is a token and a query head of the group: ``token * (HEADS / GROUPS) + head``.
    """
    PER_GROUP: tl.constexpr = HEADS // GROUPS
    group = tl.program_id(1)
    m = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    end_S = _split_ends(length_S, sequences, SPLIT, MAX_SPLITS, SEQUENCES)
    item_count = tl.max(end_S, axis=0)
    item = tl.program_id(0)
    while item < item_count:
        sequence = tl.sum((end_S <= item).to(tl.int32), axis=0)
        split = item - tl.max(tl.where(end_S <= item, end_S, 0), axis=0)
        length = tl.load(length_S + sequence)
        size = _split_size(length, SPLIT, MAX_SPLITS)
        count = tl.cdiv(length, size)
        first_token, queries = sequence, 1
        if RAGGED:
            first_token = tl.load(query_start_S1 + sequence)
            queries = tl.load(query_start_S1 + sequence + 1) - first_token
        in_rows = m < queries * PER_GROUP
        last = length - queries + m // PER_GROUP  # the last position that a row attends to
        row = (
            (first_token + m // PER_GROUP).to(tl.int64) * HEADS + group * PER_GROUP + m % PER_GROUP
        )
        q1, q2 = _load(q_THD + row * DIM, in_rows, DIM, FIRST, REST)
        cache_head = cache_layer + group * (SLOTS * DIM)
        table = table_SW + sequence.to(tl.int64) * width
        start, end = split * size, tl.minimum(length, (split + 1) * size)
        top, mass, acc1, acc2 = _attend(
            *(q1, q2, cache_head, table, start, end, last, scale),
            *(GROUPS, DIM, FIRST, REST, SLOTS, ROWS, TILE, PRECISION),
        )
        done = count == 1
        if count > 1:
            base = (sequence.to(tl.int64) * GROUPS + group) * splits * max_rows + m
            part = base + split * max_rows
            tl.store(largest + part, top, mask=in_rows)
            tl.store(total + part, mass, mask=in_rows)
            _store(output + part * DIM, acc1, acc2, in_rows, DIM, FIRST, REST)
            tl.debug_barrier()  # all threads have written before one of them counts
            counter = finished + (tl.program_id(2) * sequences + sequence) * GROUPS + group
            done = tl.atomic_add(counter, 1, sem="acq_rel") == count - 1
            if done:
                tl.atomic_xchg(counter, 0)  # for the next launch
                mass, acc1, acc2 = _merge(
                    *(output, largest, total, base, count, max_rows, in_rows),
                    *(DIM, FIRST, REST, MAX_SPLITS, ROWS),
                )
        if done:
            divisor = tl.where(in_rows, mass, 1.0)[:, None]
            _store(out_THD + row * DIM, acc1 / divisor, acc2 / divisor, in_rows, DIM, FIRST, REST)
        item += tl.num_programs(0)


@triton.jit
def _split_ends(
    length_S,
    sequences,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    SEQUENCES: tl.constexpr,
):
    """Number of splits of each sequence and of all before it."""
    s = tl.arange(0, SEQUENCES)
    length_s = tl.load(length_S + s, mask=s < sequences, other=0)
    return tl.cumsum(tl.cdiv(length_s, _split_size(length_s, SPLIT, MAX_SPLITS)), axis=0)


@triton.jit
def _split_size(length, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Tokens of a split: doubled until a sequence has at most ``MAX_SPLITS``."""
    times = tl.maximum(length - 1, 0) // (SPLIT * MAX_SPLITS)
    exponent = times.to(tl.float32).to(tl.int32, bitcast=True) >> 23
    return SPLIT << tl.maximum(exponent - 126, 0)


@triton.jit
def _attend(
    q1,
    q2,
    cache_head,
    table,
    start,
    end,
    last_M,
    scale,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Largest score, sum of exponentials and weighted values of the positions of a split."""
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    acc1 = tl.zeros((ROWS, FIRST), tl.float32)
    acc2 = tl.zeros((ROWS, REST if REST else FIRST), tl.float32)
    for tile in range(start, end, TILE):
        p = tile + tl.arange(0, TILE)
        held = p < end
        block = tl.load(table + p // SLOTS, mask=held, other=0)
        at = cache_head + block.to(tl.int64) * (2 * GROUPS * SLOTS * DIM) + (p % SLOTS) * DIM
        k1, k2 = _load(at, held, DIM, FIRST, REST)
        score = tl.dot(q1, tl.trans(k1), input_precision=PRECISION)
        if REST:
            score += tl.dot(q2, tl.trans(k2), input_precision=PRECISION)
        seen = held[None, :] & (p[None, :] <= last_M[:, None])
        score = tl.where(seen, score * scale, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, axis=1))
        # A row that has seen no position yet has no score to subtract.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(score - base[:, None])
        shrink = tl.exp2(top - base)
        mass = mass * shrink + tl.sum(weight, axis=1)
        top = new_top
        v1, v2 = _load(at + GROUPS * SLOTS * DIM, held, DIM, FIRST, REST)
        weight = weight.to(v1.dtype)
        acc1 = acc1 * shrink[:, None] + tl.dot(weight, v1, input_precision=PRECISION)
        if REST:
            acc2 = acc2 * shrink[:, None] + tl.dot(weight, v2, input_precision=PRECISION)
    return top, mass, acc1, acc2


@triton.jit
def _merge(
    output,
    largest,
    total,
    base_M,
    count,
    max_rows,
    in_rows,
    DIM: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Sum of exponentials and weighted values of all splits of a sequence, in their order."""
    part = tl.arange(0, MAX_SPLITS)[None, :]
    tops = largest + base_M[:, None] + part * max_rows
    top = tl.load(tops, mask=in_rows[:, None] & (part < count), other=float("-inf"))
    top = tl.where(in_rows, tl.max(top, axis=1), 0.0)
    mass = tl.zeros((ROWS,), tl.float32)
    acc1 = tl.zeros((ROWS, FIRST), tl.float32)
    acc2 = tl.zeros((ROWS, REST if REST else FIRST), tl.float32)
    for split in range(count):
        at = base_M + split * max_rows
        share = tl.exp2(tl.load(largest + at, mask=in_rows, other=0.0) - top)
        mass += share * tl.load(total + at, mask=in_rows, other=0.0)
        part1, part2 = _load(output + at * DIM, in_rows, DIM, FIRST, REST)
        acc1 += share[:, None] * part1
        if REST:
            acc2 += share[:, None] * part2
    return mass, acc1, acc2


@triton.jit
def _load(at, mask, DIM: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr):
    """The two tiles of rows that start at ``at``."""
    d = tl.arange(0, FIRST)[None, :]
    first = tl.load(at[:, None] + d, mask=mask[:, None], other=0.0)
    rest = first
    if REST:
        d = FIRST + tl.arange(0, REST)[None, :]
        rest = tl.load(at[:, None] + d, mask=mask[:, None] & (d < DIM), other=0.0)
    return first, rest


@triton.jit
def _store(at, first, rest, mask, DIM: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr):
    """Store the two tiles of rows that start at ``at``, in its dtype."""
    dtype = at.dtype.element_ty
    d = tl.arange(0, FIRST)[None, :]
    tl.store(at[:, None] + d, first.to(dtype), mask=mask[:, None])
    if REST:
        d = FIRST + tl.arange(0, REST)[None, :]
        tl.store(at[:, None] + d, rest.to(dtype), mask=mask[:, None] & (d < DIM))

"""The kernel of ``paged_decode``; see there for what it computes."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
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
    scale,
    RAGGED: tl.constexpr,
    MAX_QUERY: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLIT: tl.constexpr,
    MAX_SPLITS: tl.constexpr,
    SEQUENCES: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE: tl.constexpr,
    EXACT: tl.constexpr,
):
    """One program per share of all splits, key-value head, and chunk of query rows.

    A query row is a token's query head of the group: ``token * (HEADS / GROUPS) + head``.
    """
    PER_GROUP: tl.constexpr = HEADS // GROUPS
    ROWS: tl.constexpr = MAX_QUERY * PER_GROUP
    group = tl.program_id(1)
    m = tl.program_id(2) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    d1 = tl.arange(0, FIRST)
    # Which splits are whose: of sequence s, those from end[s - 1] to end[s].
    s = tl.arange(0, SEQUENCES)
    length_s = tl.load(length_S + s, mask=s < sequences, other=0)
    size_s = _split_size(length_s, SPLIT, MAX_SPLITS)
    end_s = tl.cumsum((length_s + size_s - 1) // size_s, axis=0)
    item_count = tl.max(end_s, axis=0)
    item = tl.program_id(0)
    while item < item_count:
        sequence = tl.sum((end_s <= item).to(tl.int32), axis=0)
        split = item - tl.max(tl.where(end_s <= item, end_s, 0), axis=0)
        length = tl.load(length_S + sequence)
        size = _split_size(length, SPLIT, MAX_SPLITS)
        count = (length + size - 1) // size
        first_row = sequence
        queries = 1
        if RAGGED:
            first_row = tl.load(query_start_S1 + sequence)
            queries = tl.load(query_start_S1 + sequence + 1) - first_row
        is_row = m < queries * PER_GROUP
        last = length - queries + m // PER_GROUP  # the last position that a query row attends to
        q_at = (first_row + m // PER_GROUP).to(tl.int64) * (HEADS * DIM)
        q_at += (group * PER_GROUP + m % PER_GROUP) * DIM
        q1 = tl.load(q_THD + q_at[:, None] + d1[None, :], mask=is_row[:, None], other=0.0)
        acc1 = tl.zeros((TILE_ROWS, FIRST), tl.float32)
        if REST:
            d2 = FIRST + tl.arange(0, REST)
            in_q2 = is_row[:, None] & (d2 < DIM)[None, :]
            q2 = tl.load(q_THD + q_at[:, None] + d2[None, :], mask=in_q2, other=0.0)
            acc2 = tl.zeros((TILE_ROWS, REST), tl.float32)
        top = tl.full((TILE_ROWS,), float("-inf"), tl.float32)
        mass = tl.zeros((TILE_ROWS,), tl.float32)
        end = tl.minimum(length, (split + 1) * size)
        for start in range(split * size, end, TILE):
            position = start + tl.arange(0, TILE)
            held = position < end
            block = tl.load(
                table_SW + sequence.to(tl.int64) * width + position // SLOTS, mask=held, other=0
            )
            at = block.to(tl.int64) * (2 * GROUPS * SLOTS * DIM)
            at += group * (SLOTS * DIM) + (position % SLOTS) * DIM
            k_at = cache_layer + at
            v_at = k_at + GROUPS * SLOTS * DIM
            k1 = tl.load(k_at[:, None] + d1[None, :], mask=held[:, None], other=0.0)
            scores = _dot(q1, tl.trans(k1), EXACT)
            if REST:
                in_kv2 = held[:, None] & (d2 < DIM)[None, :]
                k2 = tl.load(k_at[:, None] + d2[None, :], mask=in_kv2, other=0.0)
                scores += _dot(q2, tl.trans(k2), EXACT)
            seen = position[None, :] <= last[:, None]
            scores = tl.where(seen & held[None, :], scores * scale, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, axis=1))
            # A row that has seen no key yet has no largest score to subtract.
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
            weight = tl.exp2(scores - base[:, None])
            shrink = tl.exp2(top - base)
            mass = mass * shrink + tl.sum(weight, axis=1)
            top = new_top
            v1 = tl.load(v_at[:, None] + d1[None, :], mask=held[:, None], other=0.0)
            acc1 = acc1 * shrink[:, None] + _dot(weight.to(v1.dtype), v1, EXACT)
            if REST:
                v2 = tl.load(v_at[:, None] + d2[None, :], mask=in_kv2, other=0.0)
                acc2 = acc2 * shrink[:, None] + _dot(weight.to(v2.dtype), v2, EXACT)
        merges = count == 1
        slot = ((sequence * GROUPS + group).to(tl.int64) * splits) * ROWS + m
        if count > 1:
            here = slot + split * ROWS
            tl.store(largest + here, top, mask=is_row)
            tl.store(total + here, mass, mask=is_row)
            here = here[:, None] * DIM
            tl.store(output + here + d1[None, :], acc1, mask=is_row[:, None])
            if REST:
                tl.store(output + here + d2[None, :], acc2, mask=in_q2)
            tl.debug_barrier()  # all threads have written before one of them counts
            counter = finished + (tl.program_id(2) * sequences + sequence) * GROUPS + group
            merges = tl.atomic_add(counter, 1, sem="acq_rel") == count - 1
            if merges:
                tl.atomic_xchg(counter, 0)
                top = tl.full((TILE_ROWS,), float("-inf"), tl.float32)
                mass = tl.zeros((TILE_ROWS,), tl.float32)
                acc1 = tl.zeros((TILE_ROWS, FIRST), tl.float32)
                if REST:
                    acc2 = tl.zeros((TILE_ROWS, REST), tl.float32)
                for part in range(count):
                    here = slot + part * ROWS
                    part_top = tl.load(largest + here, mask=is_row, other=0.0)
                    part_mass = tl.load(total + here, mask=is_row, other=0.0)
                    new_top = tl.maximum(top, part_top)
                    base = tl.where(new_top == float("-inf"), 0.0, new_top)
                    shrink = tl.exp2(top - base)
                    share = tl.exp2(part_top - base)
                    mass = mass * shrink + part_mass * share
                    top = new_top
                    here = here[:, None] * DIM
                    part1 = tl.load(output + here + d1[None, :], mask=is_row[:, None], other=0.0)
                    acc1 = acc1 * shrink[:, None] + part1 * share[:, None]
                    if REST:
                        part2 = tl.load(output + here + d2[None, :], mask=in_q2, other=0.0)
                        acc2 = acc2 * shrink[:, None] + part2 * share[:, None]
        if merges:
            dtype = out_THD.dtype.element_ty
            at = out_THD + q_at[:, None]
            tl.store(at + d1[None, :], (acc1 / mass[:, None]).to(dtype), mask=is_row[:, None])
            if REST:
                tl.store(at + d2[None, :], (acc2 / mass[:, None]).to(dtype), mask=in_q2)
        item += tl.num_programs(0)


@triton.jit
def _split_size(length, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """Tokens of a split of a sequence: doubled until there are at most ``MAX_SPLITS``."""
    size = length * 0 + SPLIT
    for _ in tl.static_range(8):
        size = tl.where(size * MAX_SPLITS < length, size * 2, size)
    return size


@triton.jit
def _dot(a, b, EXACT: tl.constexpr):
    if EXACT:
        return tl.dot(a, b, input_precision="ieee")
    return tl.dot(a, b)

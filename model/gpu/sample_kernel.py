"""The kernel of ``sample_rows``; see there for what it computes.

Weights are probabilities relative to the largest one. They are not negative, so they are ordered as the
integers of their bits, and a bisection of 30 steps finds any of them by rank or by cumulative weight,
without a sort.
"""

from __future__ import annotations

import triton
import triton.language as tl

ONE = tl.constexpr(0x3F800000)  # bits of the largest weight, 1


@triton.jit
def sample_kernel(
    logits_RV,
    temperature_R,
    top_k_R,
    top_p_R,
    min_p_R,
    seed_R,
    position_R,
    out_R,
    vocabulary,
    GREEDY_BELOW: tl.constexpr,
    HAS_MIN_P: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, PADDED)
    logits = tl.load(
        logits_RV + row * vocabulary + token, mask=token < vocabulary, other=float("-inf")
    )
    temperature = tl.load(temperature_R + row)
    if temperature < GREEDY_BELOW:
        best = tl.max(logits, axis=0)
        chosen = tl.min(tl.where(logits == best, token, PADDED), axis=0)
    else:
        scaled = tl.div_rn(logits, temperature)
        weight = tl.exp(scaled - tl.max(scaled, axis=0))
        top_k = tl.load(top_k_R + row)
        top_p = tl.load(top_p_R + row)
        min_p = 0.0
        if HAS_MIN_P:
            min_p = tl.load(min_p_R + row)
        uniform = _uniform(tl.load(seed_R + row), tl.load(position_R + row))
        if (top_k == 0) & (top_p >= 1.0) & (min_p == 0.0):
            chosen = _first_beyond(weight, token, uniform * tl.sum(weight, axis=0), PADDED)
        else:
            chosen = _draw_cut(weight, token, top_k, top_p, min_p, uniform, vocabulary, PADDED)
    # With NaN logits any token will do, but it must exist.
    tl.store(out_R + row, tl.minimum(chosen, vocabulary - 1).to(tl.int64))


@triton.jit
def _draw_cut(weight, token, top_k, top_p, min_p, uniform, vocabulary, PADDED: tl.constexpr):
    """Draw from the most probable tokens, in the order of their probabilities.

    Those kept are all tokens of a greater weight than ``cut``, and ``ties`` of this weight.
    """
    bits = weight.to(tl.int32, bitcast=True)
    mass = tl.sum(weight, axis=0)
    # top_k: the greatest weight that k tokens reach.
    cut = tl.full((), 0, tl.int32)
    ties = tl.full((), PADDED, tl.int32)
    if (top_k > 0) & (top_k < vocabulary):
        over = tl.full((), 0x3F800001, tl.int32)
        while over - cut > 1:
            middle = (cut + over) // 2
            if tl.sum((bits >= middle).to(tl.int32), axis=0) >= top_k:
                cut = middle
            else:
                over = middle
        ties = top_k - tl.sum((bits > cut).to(tl.int32), axis=0)
        mass = _kept(weight, bits, cut, ties)
    # top_p, of what top_k leaves: the least weight before which less than top_p lies.
    if top_p < 1.0:
        limit = top_p * mass
        low = cut - 1
        high = tl.full((), 0x3F800000, tl.int32)
        while high - low > 1:
            middle = (low + high) // 2
            if tl.sum(tl.where(bits > middle, weight, 0.0), axis=0) < limit:
                high = middle
            else:
                low = middle
        before = tl.sum(tl.where(bits > high, weight, 0.0), axis=0)
        value = high.to(tl.float32, bitcast=True)
        within = tl.ceil((limit - before) / value)
        within = tl.maximum(tl.minimum(within, PADDED * 1.0), 1.0).to(tl.int32)
        ties = tl.where(high == cut, tl.minimum(ties, within), within)
        cut = high
    least = min_p.to(tl.float32, bitcast=False).to(tl.int32, bitcast=True)
    if least > cut:
        cut = least
        ties = tl.full((), PADDED, tl.int32)
    target = uniform * _kept(weight, bits, cut, ties)
    # The greatest weight with which the cumulative weight exceeds the target.
    low = cut
    high = tl.full((), 0x3F800001, tl.int32)
    while high - low > 1:
        middle = (low + high) // 2
        if tl.sum(tl.where(bits >= middle, weight, 0.0), axis=0) > target:
            low = middle
        else:
            high = middle
    value = low.to(tl.float32, bitcast=True)
    before = tl.sum(tl.where(bits > low, weight, 0.0), axis=0)
    count = tl.sum((bits == low).to(tl.int32), axis=0)
    count = tl.where(low == cut, tl.minimum(count, ties), count)
    number = tl.floor((target - before) / value)
    number = tl.maximum(tl.minimum(number, count - 1.0), 0.0)
    return _first_beyond((bits == low).to(tl.float32), token, number, PADDED)


@triton.jit
def _kept(weight, bits, cut, ties):
    """The sum of all weights above ``cut``, and of at most ``ties`` weights equal to it."""
    above = tl.sum(tl.where(bits > cut, weight, 0.0), axis=0)
    equal = tl.minimum(tl.sum((bits == cut).to(tl.int32), axis=0), ties)
    return above + equal.to(tl.float32) * cut.to(tl.float32, bitcast=True)


@triton.jit
def _first_beyond(weight, token, target, PADDED: tl.constexpr):
    """The lowest token up to which the cumulative weight exceeds ``target``."""
    low = tl.full((), -1, tl.int32)
    high = tl.full((), PADDED - 1, tl.int32)
    while high - low > 1:
        middle = (low + high) // 2
        if tl.sum(tl.where(token <= middle, weight, 0.0), axis=0) > target:
            high = middle
        else:
            low = middle
    return high


@triton.jit
def _uniform(seed, position):
    """A number in [0, 1) that depends only on seed and position (SplitMix64)."""
    z = _mix(seed.to(tl.uint64)) + (position + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    return ((_mix(z) >> 11).to(tl.float64) * (1.0 / (1 << 53))).to(tl.float32)


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)

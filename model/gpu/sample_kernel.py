"""The kernel of ``sample_rows``; see there for what it computes.

A row stays in the registers of one program, as a tensor of ``(OUTER, THREADS, 4)`` tokens. Weights are
probabilities relative to the largest one. They are not negative, so they are ordered as the integers of
their bits, and a bisection of 30 steps finds any of them by rank or by cumulative weight, without a sort.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The bits of 1, the largest weight; and 1.5 * 2**11, which rounds a weight to 12 bits when added.
ONE = tl.constexpr(0x3F800000)
ROUNDER = tl.constexpr(3072.0)
# What may be a slice: compiled once for all addresses.
SLICES = ("temperature_R", "top_k_R", "top_p_R", "min_p_R", "seed_R", "position_R")


@triton.jit(do_not_specialize_on_alignment=SLICES)
def sample_kernel(
    logits_RV,
    temperature_R,
    top_k_R,
    top_p_R,
    min_p_R,
    seed_R,
    position_R,
    out_R,
    VOCABULARY: tl.constexpr,
    GREEDY_BELOW: tl.constexpr,
    HAS_MIN_P: tl.constexpr,
    OUTER: tl.constexpr,
    THREADS: tl.constexpr,
):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    # A token's number has two parts. A thread's tokens differ in the first, which takes no registers.
    first = tl.arange(0, OUTER)[:, None, None] * (THREADS * 4) + tl.arange(0, 4)[None, None, :]
    second = tl.arange(0, THREADS)[None, :, None] * 4
    inside = first < VOCABULARY - second
    at = logits_RV + row * VOCABULARY + second + first
    logits = tl.load(at, mask=inside, other=float("-inf"))
    temperature = tl.load(temperature_R + row)
    if temperature < GREEDY_BELOW:
        chosen = _lowest(logits == tl.max(logits), first, second)
    else:
        scaled = logits / temperature
        weight = tl.exp(scaled - tl.max(scaled))
        top_k = tl.load(top_k_R + row)
        top_p = tl.load(top_p_R + row)
        min_p = top_p * 0.0
        if HAS_MIN_P:
            min_p = tl.load(min_p_R + row)
        seed, position = seed_R + row, position_R + row
        if (top_k == 0) & (top_p >= 1.0) & (min_p == 0.0):
            target = _uniform(seed, position) * _sum(weight)
            chosen = _first_beyond(weight, first, second, target, VOCABULARY)
        else:
            chosen = _draw_cut(
                weight, first, second, top_k, top_p, min_p, seed, position, VOCABULARY
            )
    # With NaN logits any token will do, but it must exist.
    tl.store(out_R + row, tl.minimum(chosen, VOCABULARY - 1).to(tl.int64))


@triton.jit
def _draw_cut(weight, first, second, top_k, top_p, min_p, seed, position, VOCABULARY: tl.constexpr):
    """Draw from the most probable tokens, in the order of their probabilities.

    Those are all tokens of a greater weight than ``cut`` (the bits of a weight), and ``ties`` tokens of
    this weight.
    """
    bits = weight.to(tl.int32, bitcast=True)
    cut, ties = _cut_top_k(bits, top_k, VOCABULARY)
    if top_p < 1.0:
        cut, ties = _cut_top_p(weight, bits, cut, ties, top_p)
    least = min_p.to(tl.int32, bitcast=True)
    if least > cut:
        cut = _least_of(bits, least)
        ties = cut * 0 + VOCABULARY
    target = _uniform(seed, position) * _kept(weight, bits, cut, ties)
    # The greatest weight with which the cumulative weight exceeds the target.
    low, high = cut, cut * 0 + ONE + 1
    while high - low > 1:
        middle = (low + high) // 2
        if _sum(tl.where(bits >= middle, weight, 0.0)) > target:
            low = middle
        else:
            high = middle
    count = tl.sum((bits == low).to(tl.int32))
    count = tl.where(low == cut, tl.minimum(count, ties), count)
    number = tl.floor((target - _sum(tl.where(bits > low, weight, 0.0))) / _value(low))
    number = tl.maximum(tl.minimum(number, count - 1.0), 0.0)
    return _first_beyond((bits == low).to(tl.float32), first, second, number, VOCABULARY)


@triton.jit
def _cut_top_k(bits, top_k, VOCABULARY: tl.constexpr):
    """Cut and ties of the ``top_k`` most probable tokens; 0 keeps all tokens."""
    cut = top_k * 0
    ties = cut + VOCABULARY
    if (top_k > 0) & (top_k < VOCABULARY):
        over = cut + ONE + 1
        while over - cut > 1:
            middle = (cut + over) // 2
            if tl.sum((bits >= middle).to(tl.int32)) >= top_k:
                cut = middle
            else:
                over = middle
        ties = top_k - tl.sum((bits > cut).to(tl.int32))
    return cut, ties


@triton.jit
def _cut_top_p(weight, bits, cut, ties, top_p):
    """Cut and ties of the most probable tokens before which less than ``top_p`` of the mass lies."""
    limit = top_p * _kept(weight, bits, cut, ties)
    low, high = cut - 1, cut * 0 + ONE
    while high - low > 1:
        middle = (low + high) // 2
        if _sum(tl.where(bits > middle, weight, 0.0)) < limit:
            high = middle
        else:
            low = middle
    within = tl.ceil((limit - _sum(tl.where(bits > high, weight, 0.0))) / _value(high))
    within = tl.maximum(tl.minimum(within, 1e9), 1.0).to(tl.int32)  # at least the best token
    return high, tl.where(high == cut, tl.minimum(ties, within), within)


@triton.jit
def _kept(weight, bits, cut, ties):
    """The sum of all weights above ``cut``, and of at most ``ties`` weights equal to it."""
    equal = tl.minimum(tl.sum((bits == cut).to(tl.int32)), ties)
    return _sum(tl.where(bits > cut, weight, 0.0)) + equal * _value(cut)


@triton.jit
def _value(bits):
    """The weight of these bits, as a positive divisor."""
    return tl.maximum(bits.to(tl.float32, bitcast=True), 1e-37).to(tl.float64)


@triton.jit
def _first_beyond(weight, first, second, target, VOCABULARY: tl.constexpr):
    """The lowest token up to which the cumulative weight exceeds ``target``."""
    low, high = tl.full((), -1, tl.int32), tl.full((), VOCABULARY - 1, tl.int32)
    while high - low > 1:
        middle = (low + high) // 2
        if _sum(tl.where(first <= middle - second, weight, 0.0)) > target:
            high = middle
        else:
            low = middle
    return high


@triton.jit
def _sum(weight):
    """Sum as float64, correct to about 1e-10 of the largest weight, without float64 per token.

    A thread's sums of the high bits are exact, and those of the low bits are small.
    """
    high = (weight + ROUNDER) - ROUNDER
    low = tl.sum(weight - high, axis=2)
    high = tl.sum(high, axis=2)
    return tl.sum(tl.sum(high, axis=0).to(tl.float64) + tl.sum(low, axis=0).to(tl.float64), axis=0)


@triton.jit
def _lowest(which, first, second):
    """The lowest token of those; beyond the vocabulary if there are none."""
    return tl.min(tl.where(which, first + second, 1 << 30))


@triton.jit
def _least_of(bits, least):
    """The smallest weight that is not below ``least``."""
    return tl.min(tl.where(bits >= least, bits, ONE))


@triton.jit
def _uniform(seed, position):
    """A number in [0, 1) that depends only on seed and position (SplitMix64)."""
    z = _mix(tl.load(seed).to(tl.uint64))
    z += (tl.load(position) + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    return (_mix(z) >> 11).to(tl.float64) * (1.0 / (1 << 53))


@triton.jit
def _mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)

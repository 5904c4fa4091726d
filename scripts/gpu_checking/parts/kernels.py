"""Each kernel on the device, compared with torch in float32, at the official sizes and at odd ones."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from model.demo.random_checkpoint import PRESETS, config_for
from model.engine.request import SamplingParams
from model.engine.sampling.drawing import Row, draw
from model.gpu import support
from model.phi3v.configuration import Phi3VConfig
from scripts.benchmarks.harness.report import Figure, Report
from scripts.gpu_checking.device import name_of, synchronize
from scripts.gpu_checking.options import Options
from scripts.gpu_checking.parts import NotCheckedError
from scripts.gpu_checking.references import (
    excess,
    gated,
    normed,
    paged_sequences,
    poisoned,
    split_and_rotated,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
EPS = 1e-5
# A GPU's exp2, division and rsqrt are approximate in the last bits of float32; torch's are others.
GPU_SCALE = 5.0
DIFFERENT_DRAWS = 2  # of a hundred rows, where a random number lies next to a border
GUESSES = (1, 4, 8, 16)  # tokens of a sequence in a step


class Case(NamedTuple):
    """A kernel at certain sizes.

    ``check(dtype, device)`` returns its error as a multiple of the tolerance; for ``dtypes``.
    """

    kernel: str
    sizes: str
    check: Callable[[torch.dtype, torch.device], float]
    dtypes: tuple[torch.dtype, ...] = DTYPES


def check(options: Options) -> Report:
    """Compare all kernels in all dtypes, and time their first compilation."""
    device = options.device
    config = Phi3VConfig(**config_for(PRESETS["full"], "official"))
    reasons = {dtype: support.unsupported_reason(config, dtype, device) for dtype in DTYPES}
    dtypes = [dtype for dtype in DTYPES if reasons[dtype] is None]
    if not dtypes:
        raise NotCheckedError(str(reasons[torch.float16]))
    notes = [f"no {name_of(dtype)}: {reason}" for dtype, reason in reasons.items() if reason]
    if not options.on_gpu:
        dtypes.remove(torch.bfloat16)
        notes.append("no bfloat16: Triton's interpreter multiplies its bits as integers")
    report = Report(
        "kernels",
        "errors against torch in float32, as multiples of the tolerance",
        ["kernel", "sizes", *map(name_of, dtypes)],
        notes=notes,
    )
    if options.on_gpu:
        report.notes.append(_compile(config, options, report))
    worst = 0.0
    for case in cases(options.on_gpu):
        found = {dtype: _try(case, dtype, device) for dtype in dtypes if dtype in case.dtypes}
        report.rows.append([case.kernel, case.sizes, *(found.get(dtype, "-") for dtype in dtypes)])
        worst = max(worst, *(x if isinstance(x, float) else torch.inf for x in found.values()))
    report.figures.append(Figure("largest error / tolerance", worst, "at most", 1))
    return report


def _try(case: Case, dtype: torch.dtype, device: torch.device) -> float | str:
    """The case's error, or what it raised; the other kernels are still worth a look."""
    try:
        return case.check(dtype, device)
    except Exception as error:
        return textwrap.shorten(f"{type(error).__name__}: {error}", 80)


def _compile(config: Phi3VConfig, options: Options, report: Report) -> str:
    """Compile all kernels for the first time; returns what to say about it."""
    from model.gpu.warm_up import compilations

    seconds = {}
    forms = compilations(config, options.dtype, options.device, max_sequences=256, queries=GUESSES)
    for name, compile_kernel in forms:
        started = time.perf_counter()
        compile_kernel()
        synchronize(options.device)
        seconds[name] = time.perf_counter() - started
    report.data["compilation_seconds"] = seconds
    slowest = max(seconds, key=seconds.__getitem__)
    return (
        f"first compilation in {name_of(options.dtype)}: {sum(seconds.values()):.1f} s for "
        f"{len(seconds)} forms; the slowest, {slowest}, took {seconds[slowest]:.1f} s"
    )


def cases(on_gpu: bool) -> list[Case]:
    """All kernels; long sequences only on a GPU, because the interpreter is slow."""
    found = []
    for shape in [(1, 3072), (3, 3072), (17, 96), (130, 40)]:
        found.append(Case("add_rms_norm", "{} x {}".format(*shape), partial(_norm, shape)))
    for shape in [(1, 8192), (3, 8192), (17, 200)]:
        found.append(Case("silu_gate", "{} x {}".format(*shape), partial(_gate, shape)))
    for sizes in [(3, 32, 32, 96), (17, 8, 2, 64), (70, 6, 3, 80)]:
        title = "{} tokens, {} + {} heads of {}".format(*sizes)
        found.append(Case("split_rope_store", title, partial(_rope, sizes)))
    attention = [
        ([257], [1], (32, 32, 96)),
        ([1, 15, 16, 17, 255, 256, 600], [1] * 7, (2, 1, 96)),
        ([40, 261, 300], [1, 3, 16], (4, 2, 80)),
        ([35, 20], [16, 11], (8, 1, 64)),
    ]
    if on_gpu:
        attention += [
            ([2400] * 4, [1] * 4, (32, 32, 96)),
            ([500 + n for n in range(64)], [1] * 64, (8, 8, 96)),
            ([33] * 256, [1] * 256, (4, 4, 96)),
            ([2400, 9000, 77, 1], [4, 8, 1, 1], (8, 4, 96)),
            ([30000], [1], (4, 4, 96)),
        ]
    for lengths, queries, heads in attention:
        title = (
            f"{len(lengths)} of up to {max(lengths)} tokens, up to {max(queries)} in the step, "
            "{} / {} heads of {}".format(*heads)
        )
        found.append(Case("paged_decode", title, partial(_attention, lengths, queries, heads)))
    for vocabulary in (32064, 1000):
        title = f"100 rows of {vocabulary}" if on_gpu else f"10 rows of {vocabulary}"
        rows = 100 if on_gpu else 10
        draws = partial(_sample, rows, vocabulary)
        found.append(Case("sample_rows", title, draws, (torch.float32,)))
    return found


def _scale(dtype: torch.dtype, device: torch.device) -> float:
    return GPU_SCALE if device.type == "cuda" and dtype == torch.float32 else 1.0


def _norm(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> float:
    from model.gpu.norm import add_rms_norm

    torch.manual_seed(0)
    residual, added = (torch.randn(shape).to(device, dtype) for _ in range(2))
    weight = torch.rand(shape[1]).to(device, dtype)
    total = residual + added
    out = poisoned(*shape, dtype=dtype, device=device)
    add_rms_norm(residual, added, weight, EPS, out)
    if not torch.equal(residual, total):
        return torch.inf
    return excess(out, normed(total, weight, EPS), _scale(dtype, device))


def _gate(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> float:
    from model.gpu.gate import silu_gate

    torch.manual_seed(0)
    gate_up = torch.randn(shape[0], 2 * shape[1]).mul(2).to(device, dtype)
    out = poisoned(*shape, dtype=dtype, device=device)
    silu_gate(gate_up, out)
    return excess(out, gated(gate_up), _scale(dtype, device))


def _rope(sizes: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    """Also checks that nothing but the tokens' slots is written."""
    from model.gpu.rope_store import BLOCK, split_rope_store

    torch.manual_seed(0)
    tokens, heads, groups, dim = sizes
    qkv = torch.randn(tokens, (heads + 2 * groups) * dim).to(device, dtype)
    angle = torch.rand(tokens, dim // 2).mul(6).repeat(1, 2)
    cos, sin = ((x * 1.19).to(device, dtype) for x in (angle.cos(), angle.sin()))
    blocks = tokens // BLOCK + 3
    slot = torch.randperm(blocks * BLOCK)[:tokens].to(device)
    cache = poisoned(blocks, 2, groups, BLOCK, dim, dtype=dtype, device=device)
    q_out = poisoned(tokens, heads, dim, dtype=dtype, device=device)
    copies = [poisoned(tokens, groups, dim, dtype=dtype, device=device) for _ in range(2)]
    split_rope_store(qkv, cos, sin, slot, cache, q_out, *copies)
    q, k, v = split_and_rotated(qkv, cos, sin, heads, groups)
    stored = cache[slot // BLOCK, :, :, slot % BLOCK]
    if int(cache.isnan().sum()) != cache.numel() - 2 * tokens * groups * dim:
        return torch.inf
    pairs = [(q_out, q), (stored[:, 0], k), (stored[:, 1], v), (copies[0], k), (copies[1], v)]
    return max(excess(found, expected.float()) for found, expected in pairs)


def _attention(
    lengths: Sequence[int],
    queries: Sequence[int],
    sizes: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    from model.gpu.paged_decode import DecodeScratch, paged_decode

    given = paged_sequences(lengths, queries, *sizes, dtype=dtype).on(device)
    heads, _, dim = sizes
    rows, width = given.table_SW.shape
    scratch = DecodeScratch.allocate(rows, given.max_query, heads, dim, width, device)
    out = poisoned(*given.q_THD.shape, dtype=dtype, device=device)
    starts = None if given.max_query == 1 else given.query_start_S1
    paged_decode(
        given.q_THD,
        given.cache_layer,
        given.table_SW,
        given.length_S,
        starts,
        given.max_query,
        scratch,
        out,
    )
    return excess(out, given.expected_THD, _scale(dtype, device))


def _sample(rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> float:
    """How many tokens differ from those that torch draws on the CPU; logits are float32 always."""
    from model.engine.sampling.drawing import draw_on_gpu

    torch.manual_seed(0)
    logits: Tensor = torch.randn(rows, vocabulary) * 2.5
    kinds = [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.0, top_p=0.9),
        SamplingParams(temperature=1.3, top_k=40),
        SamplingParams(temperature=1.0, top_p=0.95, min_p=0.02),
    ]
    drawn = [Row(kinds[n % len(kinds)], seed=7 * n, position=n % 3) for n in range(rows)]
    expected = draw(logits, drawn)
    found = draw_on_gpu(logits.to(device), drawn).cpu()
    return float((found != expected).sum()) / (DIFFERENT_DRAWS * rows / 100)

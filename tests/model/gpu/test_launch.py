"""Every launch can be intercepted, with the bytes that it moves."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from model.gpu.gate import silu_gate
from model.gpu.launch import Launch, Traffic, intercepted
from model.gpu.norm import add_rms_norm
from model.gpu.paged_decode import DecodeScratch, paged_decode
from model.gpu.rope_store import split_rope_store
from model.gpu.sample import sample_rows

TOKENS, HEADS, GROUPS, DIM = 3, 4, 2, 32
ROW = HEADS * DIM * 2  # bytes of a token's queries


def launch_all() -> None:
    """Each kernel once, on three tokens in float16."""
    half = torch.float16
    x, weight = torch.zeros(TOKENS, 64, dtype=half), torch.zeros(64, dtype=half)
    add_rms_norm(x, x.clone(), weight, 1e-5, torch.zeros_like(x))
    silu_gate(x, torch.zeros(TOKENS, 32, dtype=half))
    cache = torch.zeros(40, 2, GROUPS, 16, DIM, dtype=half)
    q = torch.zeros(TOKENS, HEADS, DIM, dtype=half)
    angles = torch.zeros(TOKENS, DIM, dtype=half)
    qkv = torch.zeros(TOKENS, (HEADS + 2 * GROUPS) * DIM, dtype=half)
    split_rope_store(qkv, angles, angles, torch.arange(TOKENS), cache, q)
    table, scratch = (
        torch.zeros(2, 40, dtype=torch.int32),
        DecodeScratch.allocate(2, 2, HEADS, DIM, 40, "cpu"),
    )
    lengths = torch.tensor([20, 300], dtype=torch.int32)
    starts = torch.tensor([0, 1, 3], dtype=torch.int32)
    paged_decode(q, cache, table, lengths, starts, 2, scratch, torch.zeros_like(q))
    one, whole = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    sample_rows(torch.zeros(1, 100), one, whole.int(), one, whole, whole, whole)


def test_handlers_see_names_and_bytes() -> None:
    """And no kernel runs unless they run it."""
    seen: list[tuple[str, Traffic]] = []
    with intercepted(lambda launch: seen.append((launch.kernel, launch.traffic()))):
        launch_all()
    launch_all()
    kept = 2 * GROUPS * DIM * 2  # bytes of a token's keys and values
    partial = 2 * 2 * HEADS * (DIM + 2) * 4  # two tokens in two splits, with largest and total
    assert seen == [
        ("add_rms_norm_kernel", Traffic(2 * TOKENS * 128 + 128, 2 * TOKENS * 128)),
        ("silu_gate_kernel", Traffic(TOKENS * 128, TOKENS * 64)),
        (
            "split_rope_store_kernel",
            Traffic(TOKENS * (ROW + kept + DIM * 2 + 8), TOKENS * (ROW + kept)),
        ),
        (
            "paged_decode_kernel",
            Traffic(TOKENS * ROW + 8 + 320 * kept + 4 * (2 + 19) + partial, TOKENS * ROW + partial),
        ),
        ("sample_kernel", Traffic(400 + 28, 8)),
    ]


def test_an_intercepted_launch_runs_when_its_handler_says_so() -> None:
    x, out = torch.ones(1, 8), torch.zeros(1, 4)
    launches: list[Launch] = []
    with intercepted(launches.append):
        silu_gate(x, out)
    assert not out.any()
    (launch,) = launches
    launch.run()
    torch.testing.assert_close(out, torch.nn.functional.silu(torch.ones(1, 4)))

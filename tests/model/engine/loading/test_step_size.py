"""How many sequences and prompt tokens a step may have, chosen for the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.engine.config import GIB, LoadOptions
from model.engine.loading.machine import Machine
from model.engine.loading.memory_plan import MemoryPlan, plan_memory
from tests.support.engines.official_sizes import FULL, HEADERS

OPTIONS = LoadOptions("", dtype="bfloat16")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def gpu(gib: float, used: float = 0) -> Machine:
    return Machine(CUDA, int(0.9 * (gib - used) * GIB), "of a test", int(gib * GIB))


def plan(options: LoadOptions, *machines: Machine) -> MemoryPlan:
    return plan_memory(HEADERS, FULL, options, machines)


def sizes(found: MemoryPlan) -> tuple[int, int]:
    return found.max_num_seqs, found.prefill_chunk


@pytest.mark.parametrize("gib", [12, 64, 500])
def test_a_cpu_gets_short_steps(gib: int) -> None:
    machine = Machine(CPU, gib * GIB, "")
    assert sizes(plan(OPTIONS, machine)) == (16, 512)
    assert sizes(plan(replace(OPTIONS, throughput=True), machine)) == (64, 512)


@pytest.mark.parametrize(
    ("gib", "chunk"), [(16, 2048), (24, 2048), (40, 2048), (69, 2048), (71, 8192), (141, 8192)]
)
def test_a_card_gets_a_row_for_each_512_tokens(gib: int, chunk: int) -> None:
    found = plan(OPTIONS, gpu(gib))
    assert found.prefill_chunk == chunk
    rows = found.max_num_seqs
    assert rows == 16 or found.tokens >= 512 * rows
    assert rows == 256 or found.tokens < 512 * (rows + 9)  # steps of 8, and what a row costs


def test_larger_cards_get_more_rows() -> None:
    rows = [plan(OPTIONS, gpu(gib)).max_num_seqs for gib in (16, 24, 40, 80, 141)]
    assert rows == sorted(rows)
    assert rows[0] == 16
    assert rows[-2:] == [256, 256]


def test_flags_override() -> None:
    asked = replace(OPTIONS, max_num_seqs=300, prefill_chunk=100)
    assert sizes(plan(asked, gpu(80))) == (300, 100)
    assert sizes(plan(replace(OPTIONS, max_num_seqs=3), gpu(80))) == (3, 8192)
    assert sizes(plan(replace(OPTIONS, prefill_chunk=100), gpu(80))) == (256, 100)
    assert sizes(plan(asked, Machine(CPU, 64 * GIB, ""))) == (300, 100)


def test_the_kv_cache_that_is_left_decides() -> None:
    assert plan(replace(OPTIONS, kv_cache_memory=1.0), gpu(80)).max_num_seqs == 16
    assert plan(replace(OPTIONS, kv_cache_memory=20.0), gpu(80)).max_num_seqs == 104
    found = plan(OPTIONS, gpu(80, used=56))  # by another program
    assert sizes(found) == (plan(OPTIONS, gpu(24)).max_num_seqs, 8192)


def test_short_windows_need_less_room() -> None:
    short = replace(OPTIONS, max_model_len=128, kv_cache_memory=8.0)
    assert plan(short, gpu(80)).max_num_seqs == 168  # 21,845 tokens


def test_padded_steps_have_fewer_rows() -> None:
    assert plan(replace(OPTIONS, deterministic=True), gpu(80)).max_num_seqs == 64


def test_the_smallest_card_decides() -> None:
    assert plan(OPTIONS, gpu(80), gpu(24)).prefill_chunk == 2048
    assert plan(OPTIONS, gpu(80), gpu(80)).prefill_chunk == 8192


def test_what_is_chosen_never_makes_the_model_too_large() -> None:
    """A card on which a long chunk does not fit gets a short one."""
    found = plan(replace(OPTIONS, quantization="int4"), gpu(7.2))
    assert sizes(found) == (16, 512)
    assert sizes(plan(replace(OPTIONS, quantization="int4"), gpu(9))) == (16, 2048)

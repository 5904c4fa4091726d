"""The golden tokens through the whole GPU path on the CPU: decoder, cache, graphs and sampler.

Kernels run in Triton's interpreter, so answers are shorter than on the CPU's path.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.engine.request import TextDelta
from model.phi3v.modeling import Phi3VForCausalLM
from tests.support.engines.golden_data import CASES, golden_inputs
from tests.support.engines.gpu_engines import GREEDY, make_engine
from tests.support.engines.gpu_stand_ins import Tape

TOKENS = 16
CROSSING = 28  # tokens of the answer that changes its rope regime after 22


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_in_one_batch(
    golden: Path, golden_cases: list[dict[str, Any]], tapes: list[Tape]
) -> None:
    """With prompts in chunks, which read earlier ones from the cache."""
    checkpoint = golden / "tiny-phi3v"
    model = Phi3VForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    engine = make_engine(
        model, checkpoint, max_model_len=4096, max_num_seqs=len(CASES), prefill_chunk=300
    )
    lengths = [CROSSING if case["name"] == "text_crossing" else TOKENS for case in golden_cases]
    for key, (case, length) in enumerate(zip(golden_cases, lengths, strict=True)):
        params = replace(GREEDY, max_tokens=length)
        engine.add(key, golden_inputs(case, golden), params)
    tokens: list[list[int]] = [[] for _ in golden_cases]
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output.result, TextDelta), output.result
            tokens[output.key[0]] += output.result.token_ids
    expected = [
        case["greedy_no_cache"][:length] for case, length in zip(golden_cases, lengths, strict=True)
    ]
    assert tokens == expected
    assert engine.scheduler.num_crossings == 1
    assert len(tapes[-1].played) >= TOKENS - 1

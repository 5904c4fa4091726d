"""The text-only twin: what programs without vision are given is the same decoder and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Phi3ForCausalLM

from model.demo.random_checkpoint import PRESETS, VISION, write_checkpoint
from model.phi3v.inputs.chat import Message, Role
from model.phi3v.inputs.processing import Processor
from model.phi3v.modeling import Phi3VForCausalLM


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the checkpoint that the fixture ``tiny`` writes."""
    directory = tmp_path_factory.mktemp("checkpoints") / "twin"
    write_checkpoint(directory, PRESETS["tiny"], seed=1, text_only=True)
    return directory


def test_the_twin_has_the_decoders_tensors_and_no_others(tiny: Path, twin: Path) -> None:
    whole, decoder = (load_file(path / "model.safetensors") for path in (tiny, twin))
    assert set(decoder) == {name for name in whole if VISION not in name}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in decoder.items())


@pytest.mark.parametrize("length", [20, 1100])  # both rope regimes
def test_transformers_own_class_computes_the_same_logits(
    tiny: Path, twin: Path, length: int
) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32)
    assert isinstance(theirs, Phi3ForCausalLM)
    ours = Phi3VForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = torch.randint(300, 32000, (1, length), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(theirs(input_ids=ids).logits, ours(input_ids=ids).logits)


def test_the_chat_template_makes_the_same_prompt(tiny: Path, twin: Path) -> None:
    conversation: list[tuple[Role, str]] = [
        ("user", "How many languages are in the world?"),
        ("assistant", "About 7,000."),
        ("user", " Name\ntwo. "),
    ]
    ours = Processor.from_checkpoint(tiny)(
        [Message(role, text) for role, text in conversation], 500
    )
    theirs: Any = AutoTokenizer.from_pretrained(twin).apply_chat_template(
        [{"role": role, "content": text} for role, text in conversation],
        add_generation_prompt=True,
        return_dict=True,
    )
    assert theirs["input_ids"] == ours.token_ids

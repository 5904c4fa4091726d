"""Adapters that PEFT made are merged as PEFT merges them, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.demo.random_checkpoint import PRESETS, write_checkpoint
from model.phi3v.adapters.export import write_merged
from model.phi3v.checking import check_files
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.modeling import official_shapes
from model.phi3v.weights.names import official_name
from tests.support.engines.adapters import (
    DECODER,
    EVERYTHING,
    PROJECTOR,
    TOWER,
    WEIGHTS,
    change_json,
    load_base,
    make_adapter,
    merged_by_peft,
    rename_keys,
)

ADAPTERS: dict[str, dict[str, Any]] = {
    "decoder": {},
    "everything": {"target_modules": EVERYTHING},
    "all-linear": {"target_modules": "all-linear"},
    "patterns": {
        "target_modules": [*DECODER, *TOWER],
        "rank_pattern": {"qkv_proj": 8, r".*layers\.1\.mlp\..*": 2},
        "alpha_pattern": {"model.layers.0.self_attn.o_proj": 3, "fc1|fc2": 32},
    },
    "rslora": {"use_rslora": True, "r": 5},
    "dora": {"use_dora": True, "target_modules": [*DECODER, *PROJECTOR, *TOWER]},
    "biases": {"target_modules": TOWER, "bias": "lora_only"},
    "all biases": {"target_modules": PROJECTOR, "bias": "all"},
    "biases of updates": {"target_modules": [*PROJECTOR, *TOWER], "lora_bias": True},
    "whole modules": {"modules_to_save": ["img_projection", "lm_head", "input_layernorm"]},
    "a convolution": {"target_modules": ["patch_embedding", "o_proj"]},
    "a regular expression": {"target_modules": r".*layers\.\d+\.self_attn\.(qkv|o)_proj"},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "stored transposed": {"target_modules": ["o_proj"], "fan_in_fan_out": True},
}


@pytest.fixture(scope="module", params=ADAPTERS)
def adapter(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return make_adapter(
        tiny, tmp_path_factory.mktemp("adapters") / "made", **ADAPTERS[request.param]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_to_peft(adapter: Path, tiny: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    write_merged(tiny, adapter, "made", tmp_path / "out", str(dtype).removeprefix("torch."))
    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = merged_by_peft(tiny, adapter, dtype)
    before = load_file(tiny / "model.safetensors")
    assert ours.keys() == theirs.keys() == official_shapes(Phi3VConfig.from_pretrained(tiny)).keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == dtype
        assert torch.equal(ours[name], tensor), name
    assert any(not torch.equal(ours[name], before[name].to(dtype)) for name in before)


SPELLINGS = {
    "official tower": [(".img_processor.", ".img_processor.vision_model.")],
    "an adapter's name": [("lora_A.", "lora_A.default."), ("lora_B.", "lora_B.default.")],
    "no prefix": [("base_model.model.", "")],
    "compiled": [("base_model.model.", "base_model.model._orig_mod.")],
    "compiled outside": [("base_model.model.", "_orig_mod.base_model.model.")],
    "FSDP": [(".layers.", "._fsdp_wrapped_module.layers.")],
    "DataParallel": [("base_model.", "module.base_model.")],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_names_seen_in_the_wild(tiny: Path, tmp_path: Path, spelling: str) -> None:
    made = make_adapter(tiny, tmp_path / "made", target_modules=[*DECODER, *PROJECTOR, *TOWER])
    write_merged(tiny, made, "made", tmp_path / "before")
    rename_keys(made / WEIGHTS, *SPELLINGS[spelling])
    write_merged(tiny, made, "made", tmp_path / "after")
    before, after = (load_file(tmp_path / at / "model.safetensors") for at in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_several_files_and_a_head_that_the_config_ties(tiny: Path, tmp_path: Path) -> None:
    """Files keep their names; a head that is stored stays, and the library does not tie it."""
    base, out = tmp_path / "base", tmp_path / "out"
    write_checkpoint(base, PRESETS["tiny"], seed=1, max_shard_bytes=3_000_000)
    change_json(base / "config.json", tie_word_embeddings=True)
    made = make_adapter(tiny, tmp_path / "made")
    write_merged(base, made, "made", out)
    assert {file.name for file in out.iterdir()} == {file.name for file in base.iterdir()}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index == json.loads((base / "model.safetensors.index.json").read_text())
    findings = check_files(out)
    assert all(finding.ok for finding in findings)
    assert [finding.subject for finding in findings if finding.odd] == [
        "config.json",
        "lm_head.weight",
    ]
    merged = load_base(out, torch.bfloat16).state_dict()
    theirs = merged_by_peft(tiny, made, torch.bfloat16)
    assert all(torch.equal(tensor, theirs[official_name(name)]) for name, tensor in merged.items())

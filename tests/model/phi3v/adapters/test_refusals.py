"""Adapters that are broken, hostile or for another model: one clear sentence each, before loading."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.errors import CheckpointError
from model.phi3v.adapters.adapter import Adapter
from model.phi3v.adapters.configuration import MAX_RANK
from model.phi3v.adapters.export import write_merged
from model.phi3v.adapters.model_files import model_shapes
from model.phi3v.configuration import Phi3VConfig
from tests.support.engines.adapters import WEIGHTS, change_json, change_tensors, make_adapter

CONFIG = "adapter_config.json"
LAYER = "base_model.model.model.layers.0.self_attn.qkv_proj"
A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
Spoil = Callable[[Path], object]


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("/tmp/evil-was-here").touch, ())


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny, tmp_path_factory.mktemp("adapters") / "made")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def config(**changes: object) -> Spoil:
    return lambda directory: change_json(directory / CONFIG, **changes)


def tensors(**changes: torch.Tensor | None) -> Spoil:
    return lambda directory: change_tensors(directory / WEIGHTS, **changes)


def _half_a_file(directory: Path) -> None:
    file = directory / WEIGHTS
    file.write_bytes(file.read_bytes()[:-1000])


def _half_of_the_layers(directory: Path) -> None:
    stored = load_file(directory / WEIGHTS)
    kept = {name: tensor for name, tensor in stored.items() if ".layers.0." in name}
    save_file(kept, directory / WEIGHTS)


def _pickled(directory: Path) -> None:
    torch.save(load_file(directory / WEIGHTS), directory / "adapter_model.bin")
    (directory / WEIGHTS).unlink()


def _beside(content: object) -> Spoil:
    return lambda directory: torch.save(content, directory / "non_lora_state_dict.bin")


def _old_pickle(directory: Path) -> None:
    (directory / "non_lora_state_dict.bin").write_bytes(pickle.dumps(Evil()))


REFUSED: dict[str, tuple[Spoil, str]] = {
    "no config": (lambda d: (d / CONFIG).unlink(), "adapter_config.json cannot be read"),
    "no JSON": (lambda d: (d / CONFIG).write_text("{"), "adapter_config.json cannot be read"),
    "deep JSON": (
        lambda d: (d / CONFIG).write_text("[" * 100_000),
        "adapter_config.json cannot be read",
    ),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), "adapter_model.safetensors is missing"),
    "nonsense": (lambda d: (d / WEIGHTS).write_bytes(b"nonsense"), "cannot be read"),
    "half a file": (_half_a_file, "adapter_model.safetensors cannot be read"),
    "half of the layers": (
        _half_of_the_layers,
        "it lacks 4 of the layers that it was trained on, e.g. model.layers.1.self_attn.o_proj.weight",
    ),
    "half of a layer": (
        tensors(**{B: None}),
        "only a part of the adapter of model.layers.0.self_attn.qkv_proj.weight: lora_B is missing",
    ),
    "a pickle": (
        _pickled,
        "adapter_model.bin is a pickle, which can run code when loaded; convert",
    ),
    "a pickle of code": (_beside({"x": Evil()}), "is not a file of plain tensors"),
    "an old pickle": (_old_pickle, "is not a file of plain tensors"),
    "a pickle of words": (_beside({"x": "y"}), "does not contain a dictionary of tensors only"),
    "a sparse tensor beside": (
        _beside({"model.norm.weight": torch.zeros(64).to_sparse()}),
        "'model.norm.weight' in non_lora_state_dict.bin is not a plain tensor",
    ),
    "a tensor without values beside": (
        _beside({"model.norm.weight": torch.zeros(64, device="meta")}),
        "is not a plain tensor",
    ),
    "a small file that stands for gigabytes": (
        _beside({"lm_head.weight": torch.zeros(1).expand(10**9, 64)}),
        "repeats fewer values than it has places for",
    ),
    "other weights beside": (
        _beside({"base_model.model.model.norm.weight": torch.zeros(3)}),
        "base_model.model.model.norm.weight has the shape [3], expected [64]",
    ),
    "a module that was not saved": (
        config(modules_to_save=["lm_head"]),
        "it lacks 1 of the layers that it was trained on, e.g. lm_head.weight",
    ),
    "modules of numbers": (config(modules_to_save=[1]), "modules_to_save = [1]"),
    "a name of several lines": (tensors(**{"a\nb": torch.zeros(1)}), "not printable: 'a\\nb'"),
    "a name of a megabyte": (
        tensors(**{"a" * 10**6: torch.zeros(1)}),
        "longer than 300 characters",
    ),
    "a base of several lines": (
        lambda d: (
            config(base_model_name_or_path="a\nb" + "c" * 10**6)(d),
            tensors(x=torch.zeros(1))(d),
        ),
        "it was trained on a bccc",
    ),
    "another method": (config(peft_type="IA3"), "of the type 'IA3'; only LORA"),
    "another model": (
        tensors(
            **{"base_model.model.model.layers.7.mlp.down_proj.lora_A.weight": torch.zeros(4, 1)}
        ),
        "is for a layer that this model does not have; it was trained on",
    ),
    "Llama's layers": (
        tensors(**{A.replace("qkv_proj", "q_proj"): torch.zeros(4, 64)}),
        "self_attn.q_proj.lora_A.weight is for a layer that this model does not have",
    ),
    "a wrong shape": (
        tensors(**{A: torch.zeros(4, 65)}),
        "lora_A.weight has the shape [4, 65], expected [4, 64] for rank 4",
    ),
    "another rank": (config(r=8), "expected [8, 128] for rank 8"),
    "a huge rank": (
        config(r=10**9),
        f"r = 1000000000; a rank is a whole number from 1 to {MAX_RANK}",
    ),
    "rank 0": (config(r=0), "has r = 0"),
    "a huge rank by pattern": (
        config(rank_pattern={"o_proj": 10**9}),
        "rank_pattern['o_proj'] = 1000000000",
    ),
    "a rank in words": (config(r="four"), "has r = 'four'"),
    "alpha of infinity": (config(lora_alpha=float("inf")), "lora_alpha = inf; it must be a finite"),
    "a huge alpha": (config(lora_alpha=10**400), "it must be a finite number"),
    "a flag in words": (config(use_rslora="yes"), "use_rslora = 'yes'; it must be true or false"),
    "targets of numbers": (config(target_modules=[1]), "target_modules = [1]"),
    "a slow pattern": (config(alpha_pattern={"(.*a.*)+b": 1}), "could take long to match"),
    "many branches": (config(alpha_pattern={"(a|a)" * 40: 1}), "could take long to match"),
    "an invalid pattern": (config(alpha_pattern={"[": 1}), "the invalid regular expression '['"),
    "many patterns": (
        config(alpha_pattern={f".{i}*": 1 for i in range(9)}),
        "9 regular expressions in alpha_pattern",
    ),
    "PiSSA": (config(init_lora_weights="pissa"), "training changed the base weights"),
    "replicated layers": (config(layer_replication=[[0, 1]]), "sets layer_replication"),
    "single tokens": (config(trainable_token_indices=[1]), "sets trainable_token_indices"),
    "DoRA without magnitudes": (config(use_dora=True), "lora_magnitude_vector is missing"),
    "two adapters": (
        tensors(**{A.replace("lora_A.", "lora_A.other."): torch.zeros(4, 64)}),
        "are for the same layer; save one adapter only",
    ),
    "integers": (tensors(**{A: torch.zeros(4, 64, dtype=torch.int8)}), "has the dtype I8"),
    "a bias that is not there": (
        tensors(**{B.replace("weight", "bias"): torch.zeros(192)}),
        "is for a bias, but the layer has none",
    ),
    "AdaLoRA": (tensors(**{f"{LAYER}.lora_E": torch.zeros(4, 1)}), "cannot be merged"),
    "empty": (lambda d: save_file({}, d / WEIGHTS), "it has no tensors"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused_by_one_sentence_before_weights_are_read(copy: Path, tiny: Path, why: str) -> None:
    spoil, words = REFUSED[why]
    spoil(copy)
    shapes = model_shapes(Phi3VConfig.from_pretrained(tiny))
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        Adapter(copy, shapes, "copy")
    sentence = str(caught.value)
    assert sentence.startswith("the adapter copy cannot be used: ")
    assert "\n" not in sentence
    assert len(sentence) < 600
    assert not Path("/tmp/evil-was-here").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(copy: Path, tiny: Path, tmp_path: Path, value: float) -> None:
    tensors(**{B: torch.full((192, 4), value)})(copy)
    with pytest.raises(
        CheckpointError, match=r"self_attn\.qkv_proj\.weight has values that are not"
    ):
        write_merged(tiny, copy, "copy", tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))  # nothing is left


def test_nothing_is_overwritten(copy: Path, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="exists; --out takes the name of a new directory"):
        write_merged(tiny, copy, "copy", tmp_path / "out")
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        write_merged(tiny, copy, "copy", tmp_path / "nowhere" / "out")


def test_paths_that_lead_elsewhere(copy: Path, tiny: Path, tmp_path: Path) -> None:
    """An index names files; none may be outside of the checkpoint."""
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    (base / "model.safetensors").rename(tmp_path / "outside.safetensors")
    places = {"weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(places))
    with pytest.raises(
        CheckpointError, match=r"'\.\./outside\.safetensors', which is not the name"
    ):
        write_merged(base, copy, "copy", tmp_path / "out")

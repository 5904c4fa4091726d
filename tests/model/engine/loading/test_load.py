"""Checkpoints from disk: both file layouts, little memory, and clear words about broken ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.demo import CHECKPOINT
from model.demo.random_checkpoint import PRESETS, write_checkpoint
from model.engine.config import LoadOptions
from model.engine.execution.vision_runner import VisionRunner
from model.engine.loading.load import describe, load_engine
from model.errors import CheckpointError
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.inputs.tokenizer import Phi3VTokenizer
from model.phi3v.modeling import Phi3VForCausalLM

OPTIONS = LoadOptions(model="", dtype="float32")


def test_sharded_equals_single_file(tiny: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, PRESETS["tiny"], seed=1, max_shard_bytes=1_000_000, num_crops=4)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert (tmp_path / "model.safetensors.index.json").exists()
    sharded = Phi3VForCausalLM.from_pretrained(tmp_path).state_dict()
    single = Phi3VForCausalLM.from_pretrained(tiny).state_dict()
    assert sharded.keys() == single.keys()
    assert all(torch.equal(sharded[name], single[name]) for name in single)


def test_checkpoints_depend_on_their_seed_alone(tiny: Path, tmp_path: Path) -> None:
    for directory, seed in (("same", 1), ("other", 2)):
        write_checkpoint(
            tmp_path / directory, PRESETS["tiny"], seed=seed, name="phi3v-tiny", num_crops=4
        )
    for file in tiny.iterdir():
        assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes()
    weights = "model.safetensors"
    assert (tmp_path / "other" / weights).read_bytes() != (tiny / weights).read_bytes()


def test_made_checkpoints_are_in_the_official_form(official: Path) -> None:
    """The full preset has the official names and shapes (checked without writing its 8 GB)."""
    from model.demo.random_checkpoint import config_for
    from model.phi3v.modeling import official_shapes

    config = config_for(PRESETS["full"], "x")
    index = json.loads((official / "model.safetensors.index.json").read_text())
    shapes = official_shapes(Phi3VConfig(**config))
    assert shapes.keys() == index["weight_map"].keys()
    assert sum(2 * torch.Size(s).numel() for s in shapes.values()) == 8293242880
    official_config = json.loads((official / "config.json").read_text())
    ours = {"model_provider_name"}
    theirs = {"auto_map", "transformers_version", "_attn_implementation"}
    assert config.keys() - ours == official_config.keys() - theirs
    different = {"_name_or_path", "rope_scaling"}
    for key in config.keys() - ours - different:
        assert config[key] == official_config[key], key


Break = Callable[[Path], object]


def _drop_tensor(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def _add_tensor(directory: Path) -> None:
    tensors = {**load_file(directory / "model.safetensors"), "model.what": torch.zeros(2)}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def _reshape_tensor(directory: Path) -> None:
    tensors = {**load_file(directory / "model.safetensors"), "model.norm.weight": torch.zeros(3)}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def _truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])


def _change_config(directory: Path, name: str = "config.json", **changes: object) -> None:
    file = directory / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


BROKEN: dict[str, tuple[Break, str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "config.json cannot be read"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "cannot be read"),
    "other model": (lambda d: _change_config(d, model_type="llama"), "contains a 'llama' model"),
    "odd embd_layer": (
        lambda d: _change_config(d, embd_layer={"hd_transform_order": "glb_sub"}),
        "hd_transform_order = 'glb_sub' is not supported",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "cannot be loaded"),
    "truncated weights": (_truncate, "cannot be loaded"),
    "missing tensor": (_drop_tensor, "1 missing tensors, e.g. model.norm.weight"),
    "unexpected tensor": (_add_tensor, "1 unexpected tensors, e.g. model.what"),
    "wrong shape": (
        _reshape_tensor,
        r"model.norm.weight has the shape \[3\], expected \[64\]",
    ),
    "smaller vocabulary": (
        lambda d: _change_config(d, vocab_size=100),
        r"lm_head.weight has the shape \[\d+, 64\], expected \[100, 64\]",
    ),
    "heads in words": (
        lambda d: _change_config(d, num_attention_heads="four"),
        "'num_attention_heads': TypeError: Field 'num_attention_heads' expected int, got str",
    ),
    "short rope factors": (
        lambda d: _change_config(
            d, rope_scaling={"type": "su", "short_factor": [1.0], "long_factor": [1.0]}
        ),
        "short_factor",
    ),
    "no such activation": (lambda d: _change_config(d, hidden_act="zz"), "KeyError"),
    "window of 0": (
        lambda d: _change_config(d, max_position_embeddings=0),
        "max_position_embeddings = 0 is too small",
    ),
    "window below 0": (
        lambda d: _change_config(d, max_position_embeddings=-5),
        "max_position_embeddings = -5 is too small",
    ),
    "sliding window below 0": (
        lambda d: _change_config(d, sliding_window=-1),
        "sliding_window = -1 is too small",
    ),
    "original window of 1": (
        lambda d: _change_config(d, original_max_position_embeddings=1),
        "original_max_position_embeddings = 1 is too small",
    ),
    "no heads": (
        lambda d: _change_config(d, num_attention_heads=0),
        "num_attention_heads = 0 is too small",
    ),
    "no crops": (
        lambda d: _change_config(d, "preprocessor_config.json", num_crops=0),
        "num_crops = 0; it must be at least 1",
    ),
    "mean of two": (
        lambda d: _change_config(d, "preprocessor_config.json", image_mean=[1, 2]),
        r"image_mean = \[1.0, 2.0\]; it must be 3 numbers",
    ),
    "mean an object": (
        lambda d: _change_config(d, "preprocessor_config.json", image_mean={}),
        r"image_mean = \[\]; it must be 3 numbers",
    ),
    "deviation of 0": (
        lambda d: _change_config(d, "preprocessor_config.json", image_std=[1, 1, 0]),
        "its values must not be 0",
    ),
    "added tokens a list": (
        lambda d: _change_config(d, "tokenizer_config.json", added_tokens_decoder=[{}]),
        "the added tokens of .* are invalid",
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
    "no preprocessor": (
        lambda d: (d / "preprocessor_config.json").unlink(),
        "preprocessor_config.json cannot be read",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_checkpoints(tiny: Path, tmp_path: Path, what: str) -> None:
    directory = tmp_path / "broken"
    shutil.copytree(tiny, directory)
    spoil, message = BROKEN[what]
    spoil(directory)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_engine(directory, OPTIONS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("nothing", [None, [], {}])
def test_no_added_tokens_in_the_tokenizers_config(
    tiny: Path, tmp_path: Path, nothing: object
) -> None:
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    _change_config(tmp_path, "tokenizer_config.json", added_tokens_decoder=nothing)
    Phi3VTokenizer(tmp_path)


def test_sizes_that_do_not_fit(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match=r"would fit with --max-model-len \d+ or --kv"):
        load_engine(tiny, LoadOptions(model="", max_model_len=8000, kv_cache_memory=0.001))
    with pytest.raises(CheckpointError, match="exceeds the checkpoint's context window of 8192"):
        load_engine(tiny, LoadOptions(model="", max_model_len=9000))
    small = load_engine(tiny, LoadOptions(model="", kv_cache_memory=0.001))
    assert small.config.max_model_len < 8192


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="torch finds no CUDA device"):
        load_engine(tiny, LoadOptions(model="", device="cuda"))


def test_names(tmp_path: Path, official: Path, tiny: Path) -> None:
    told = describe(official, "anything")
    assert (told.name, told.provider) == ("Phi-3-vision-128k-Instruct", "Microsoft")
    assert describe(tiny, "x").name == "phi3v-tiny"
    (tmp_path / "config.json").write_text("{}")
    assert describe(tmp_path, "someone/Their-Phi-3-vision/").name == "Their-Phi-3-vision"


def test_demo_checkpoint_is_small_and_loads() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 15_000_000
    assert describe(CHECKPOINT, "demo").name == "phi3v-demo"
    load_engine(CHECKPOINT, OPTIONS)


@pytest.mark.parametrize(("window", "images"), [(4096, 1), (64, 0)])
def test_on_a_gpu_a_picture_is_answered_first(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, window: int, images: int
) -> None:
    """Nothing of it is counted, and a window too short for it does not matter."""
    seen: list[int] = []
    advance = VisionRunner.advance

    def watch(self: VisionRunner, sequences: Sequence[Any], seconds: float) -> Any:
        result = advance(self, [*sequences], seconds)
        seen.append(self.num_images)
        return result

    monkeypatch.setattr("model.engine.loading.warm_up.on_cuda", lambda device: True)
    monkeypatch.setattr(VisionRunner, "advance", watch)
    engine = load_engine(tiny, replace(OPTIONS, max_model_len=window))
    assert max(seen, default=0) == images
    stats = engine.stats()
    assert (stats.images_computed, stats.running, stats.totals.prompt_tokens) == (0, 0, 0)

"""What ``phi3v-server check`` finds, and that it finds what loading would trip over."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import LoadOptions, Message, SamplingParams, check_checkpoint
from model.demo.random_checkpoint import PRESETS, write_checkpoint
from model.engine.loading.load import describe, load_engine
from tests.support.servers.live_server import ROOT, check_log

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def check(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "check", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def problems(directory: Path) -> list[str]:
    return [
        f"{found.subject} {found.text}" for found in check_checkpoint(directory) if not found.ok
    ]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints") / "sharded"
    write_checkpoint(directory, PRESETS["tiny"], max_shard_bytes=3_000_000)
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    return directory


@pytest.fixture
def copy(sharded: Path, tmp_path: Path) -> Path:
    shutil.copytree(sharded, tmp_path / "copy")
    return tmp_path / "copy"


def change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_tensors(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (with None) remove tensors in the shard that holds the final norm."""
    places = json.loads((directory / INDEX).read_text())["weight_map"]
    file = directory / places["model.norm.weight"]
    tensors: dict[str, torch.Tensor | None] = {**load_file(file), **changes}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, file, {"format": "pt"})


def test_good_ones(tiny: Path, sharded: Path) -> None:
    done = check(tiny)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(line[6:].split(maxsplit=1) for line in done.stdout.splitlines())
    assert all(line.startswith("ok ") for line in done.stdout.splitlines())
    assert rows["config.json"] == "2 layers, 64 wide, context window of 8192 tokens"
    assert rows["preprocessor_config.json"] == "up to 4 crops per image"
    assert rows["tensors"].endswith("GB, BF16")
    assert set(rows) >= {"tokenizer.json", WEIGHTS}
    assert problems(sharded) == []
    assert INDEX in {found.subject for found in check_checkpoint(sharded)}


def test_the_official_files_are_good_but_for_the_weights(official: Path) -> None:
    """Their index names two files, which are not here, so that all tensors are missing."""
    told = problems(official)
    index = json.loads((official / INDEX).read_text())["weight_map"]
    files = sorted(set(index.values()))
    assert told[: len(files)] == [f"{file} is missing, but listed in {INDEX}" for file in files]
    missing = {
        line.split()[0] for line in told[len(files) :] if "is missing; expected shape" in line
    }
    assert missing == index.keys()
    assert len(told) == len(files) + len(index)


def _first_shard(directory: Path) -> Path:
    return min(directory.glob("model-00001-of-*.safetensors"))


def _cut(directory: Path) -> None:
    file = _first_shard(directory)
    file.write_bytes(file.read_bytes()[:-1])


def _misplace(directory: Path) -> None:
    places = json.loads((directory / INDEX).read_text())["weight_map"]
    places["model.norm.weight"] = _first_shard(directory).name
    change_json(directory / INDEX, weight_map=places)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "config.json cannot be read"),
    "other model": (
        lambda d: change_json(d / "config.json", model_type="llama"),
        "config.json is for a 'llama' model; this server runs 'phi3_v' only",
    ),
    "odd config": (
        lambda d: change_json(d / "config.json", num_attention_heads=0),
        "num_attention_heads = 0 is too small",
    ),
    "small vocabulary": (
        lambda d: change_json(d / "config.json", vocab_size=100),
        "lm_head.weight has the shape",
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
    "no crops": (
        lambda d: change_json(d / "preprocessor_config.json", num_crops=0),
        "num_crops = 0; it must be at least 1",
    ),
    "a pickle": (lambda d: (d / "extra.bin").touch(), "extra.bin is a pickle"),
    "no shard": (lambda d: _first_shard(d).unlink(), f"is missing, but listed in {INDEX}"),
    "a cut shard": (_cut, "; download it again"),
    "nonsense": (lambda d: _first_shard(d).write_bytes(b"nonsense"), "cannot be read"),
    "no index": (lambda d: (d / INDEX).unlink(), f"{WEIGHTS} is missing, and so is {INDEX}"),
    "odd index": (lambda d: (d / INDEX).write_text("{}"), "has no weight_map"),
    "misplaced": (_misplace, "model.norm.weight is in model-"),
    "missing": (
        lambda d: change_tensors(d, **{"model.norm.weight": None}),
        "model.norm.weight is missing; expected shape [64]",
    ),
    "unexpected": (
        lambda d: change_tensors(d, **{"model.what": torch.zeros(2)}),
        "model.what is not a tensor of this model",
    ),
    "shape": (
        lambda d: change_tensors(d, **{"model.norm.weight": torch.zeros(3)}),
        "model.norm.weight has the shape [3], expected [64]",
    ),
    "dtype": (
        lambda d: change_tensors(d, **{"model.norm.weight": torch.zeros(64, dtype=torch.int8)}),
        "model.norm.weight has the unsupported dtype I8; supported are BF16, F16, F32",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_ones(copy: Path, what: str) -> None:
    spoil, words = BROKEN[what]
    spoil(copy)
    told = problems(copy)
    assert any(words in line for line in told), told
    assert not any("\n" in line for line in told)


def test_every_problem_is_named(copy: Path) -> None:
    change_json(copy / "preprocessor_config.json", num_crops=0)
    (copy / "tokenizer.json").unlink()
    change_tensors(copy, **{"model.norm.weight": None, "model.what": torch.zeros(2)})
    done = check(copy)
    assert done.returncode == 1
    check_log(done.stderr)
    wrong = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("WRONG")]
    assert sorted(wrong) == sorted(
        # The new tensor is not in the index either.
        ["preprocessor_config.json", "tokenizer.json", "model.norm.weight", *["model.what"] * 2]
    )


def test_no_directory(tmp_path: Path) -> None:
    done = check(tmp_path / "none")
    assert done.returncode == 1
    assert "is not a directory" in done.stdout


@pytest.fixture
def phi35(tmp_path: Path) -> Path:
    """A checkpoint in the form of microsoft/Phi-3.5-vision-instruct: two shards, its config's keys."""
    directory = tmp_path / "phi35"
    name = "Phi-3.5-vision-instruct"
    write_checkpoint(directory, PRESETS["tiny"], name=name, num_crops=4, max_shard_bytes=6_000_000)
    change_json(
        directory / "config.json",
        _attn_implementation="flash_attention_2",
        auto_map={"AutoConfig": "configuration_phi3_v.Phi3VConfig"},
        embd_pdrop=0.0,
        pad_token_id=32000,
        resid_pdrop=0.0,
        sliding_window=2 * PRESETS["tiny"].max_length,  # as there, twice the positions
        transformers_version="4.38.1",
    )
    return directory


def test_phi_3_5_is_served(phi35: Path) -> None:
    assert len(list(phi35.glob("model-*-of-00002.safetensors"))) == 2
    assert problems(phi35) == []
    assert describe(phi35, "x").name == "Phi-3.5-vision-instruct"
    engine = load_engine(phi35, LoadOptions(model="", dtype="float32", kv_cache_memory=0.05))
    assert engine.processor.image_processor.num_crops == 4
    inputs = engine.processor([Message("user", "Hello")], 100)
    engine.add(1, inputs, SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))
    tokens = 0
    while engine.has_work:
        for output in engine.step():
            tokens += len(getattr(output.result, "token_ids", ()) or ())
    assert tokens == 5

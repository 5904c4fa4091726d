"""Adapters merged while loading: answers as with PEFT's own layers, in the planned memory."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.engine.config import LoadOptions
from model.engine.engine import Engine
from model.engine.loading.load import adapter_name, load_engine
from model.errors import CheckpointError
from model.phi3v.adapters.export import write_merged
from model.phi3v.inputs.processing import PromptInputs
from tests.support.engines.adapters import (
    EVERYTHING,
    WEIGHTS,
    change_json,
    change_tensors,
    make_adapter,
    rename_keys,
    with_peft,
)
from tests.support.engines.engine_runs import GREEDY, image_prompt, run, text_prompt
from tests.support.engines.oracle import greedy

OPTIONS = LoadOptions(model="", dtype="float32", max_model_len=2048)
COUNT = GREEDY.max_tokens or 0


@pytest.fixture(scope="module")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It changes every kind of layer."""
    out = tmp_path_factory.mktemp("adapters") / "my-adapter"
    return make_adapter(tiny, out, target_modules=EVERYTHING, modules_to_save=["input_layernorm"])


def load(tiny: Path, adapter: Path | None, **options: Any) -> Engine:
    lora = None if adapter is None else str(adapter)
    return load_engine(tiny, replace(OPTIONS, lora=lora, **options), adapter)


def prompts(engine: Engine) -> list[PromptInputs]:
    return [text_prompt(23), image_prompt(engine, "red")]


def answers(engine: Engine, *more: PromptInputs) -> list[list[int]]:
    asked = [*prompts(engine), *more]
    found = run(engine, *((prompt, GREEDY) for prompt in asked))
    return [found[number, 0] for number in range(len(asked))]


def test_greedy_answers_equal_pefts_own_forward(tiny: Path, adapter: Path) -> None:
    engine = load(tiny, adapter)
    network = with_peft(tiny, adapter)
    long = text_prompt(1100, seed=1)  # beyond the original window
    for prompt, ours in zip([*prompts(engine), long], answers(engine, long), strict=True):
        images: dict[str, Any] = {}
        if prompt.images:
            pixels, grids = [i.crops() for i in prompt.decoded], [i.grid for i in prompt.decoded]
            images = {"pixel_values": pixels, "image_grids": grids}
        assert ours == greedy(network, torch.tensor([prompt.token_ids]), COUNT, **images)
    assert answers(load(tiny, None)) != answers(engine)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_served_as_after_phi3v_server_merge(
    tiny: Path, adapter: Path, tmp_path: Path, quantization: str
) -> None:
    """In the checkpoint's own dtype, and quantized from it."""
    merged = tmp_path / "merged"
    write_merged(tiny, adapter, "x", merged)
    options: dict[str, Any] = {"dtype": "bfloat16", "quantization": quantization}
    assert answers(load(tiny, adapter, **options)) == answers(load(merged, None, **options))


def test_the_log_says_what_is_merged(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_adapter(tiny, tmp_path / "some", target_modules=["o_proj", "img_projection.2"])
    change_json(made / "adapter_config.json", base_model_name_or_path="meta/Other")
    with caplog.at_level(logging.INFO):
        load(tiny, made)
    assert (
        "merging the adapter some, rank 4: o_proj 2/2, projector 1/4; not in it: down_proj, embeddings, "
        "gate_up_proj, head, norms, qkv_proj, separators, tower" in caplog.text
    )
    assert "the adapter some was trained on meta/Other" in caplog.text


def test_a_vocabulary_that_training_extended(tiny: Path, tmp_path: Path) -> None:
    """With its own tokenizer, whose last token is new."""
    made = make_adapter(tiny, tmp_path / "made")
    old = load_file(tiny / "model.safetensors")
    rows = len(old["lm_head.weight"])
    new = {
        name: torch.cat([old[name].float(), 50 * torch.ones(3, old[name].shape[1])])
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    change_tensors(
        made / WEIGHTS, **{f"base_model.model.{name}": tensor for name, tensor in new.items()}
    )
    engine = load(tiny, made)
    assert engine.network.config.vocab_size == rows + 3
    assert len(answers(engine)[0]) == COUNT
    write_merged(tiny, made, "made", tmp_path / "merged")
    assert answers(load(tmp_path / "merged", None)) == answers(load(tiny, made))
    change_tensors(made / WEIGHTS, **{"base_model.model.lm_head.weight": None})
    with pytest.raises(CheckpointError, match=r"token embeddings but .* outputs of the head"):
        load(tiny, made)


def test_weights_trained_beside_the_adapter(tiny: Path, tmp_path: Path) -> None:
    """As trainers save them: with PEFT's prefixes, by torch.save."""
    made = make_adapter(tiny, tmp_path / "made", target_modules=["o_proj"])
    name = "model.vision_embed_tokens.img_projection.0.weight"
    old = load_file(tiny / "model.safetensors")[name]
    torch.save({f"base_model.model.{name}": old * 2}, made / "non_lora_state_dict.bin")
    write_merged(tiny, made, "made", tmp_path / "merged")
    assert torch.equal(load_file(tmp_path / "merged" / "model.safetensors")[name], old * 2)


def test_checkpoints_under_trainers_names(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    """With an adapter on top; the tokens' embedding is there under its second name only."""
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    rename_keys(
        tmp_path / "model.safetensors",
        ("model.", "base_model.model._orig_mod.model."),
        ("embed_tokens.weight", "vision_embed_tokens.wte.weight"),
        ("img_processor.vision_base_model.model._orig_mod.model.", "img_processor."),
        ("lm_head", "base_model.model.lm_head"),
    )
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "base_model.model._orig_mod.model.vision_embed_tokens.wte.weight" in names
    assert answers(load(tmp_path, None)) == answers(load(tiny, None))
    assert answers(load(tmp_path, adapter)) == answers(load(tiny, adapter))


def test_an_adapter_in_the_checkpoints_folder_is_left_alone(
    tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    """Else transformers would load the base that the adapter names."""
    for file in (*tiny.iterdir(), *adapter.iterdir()):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    change_json(tmp_path / "adapter_config.json", base_model_name_or_path=str(tmp_path / "nowhere"))
    assert answers(load(tmp_path, None)) == answers(load(tiny, None))
    assert answers(load(tmp_path, tmp_path)) == answers(load(tiny, adapter))


def test_tensors_of_an_unsupported_dtype(tiny: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ids = "model.vision_embed_tokens.img_processor.vision_model.embeddings.position_ids"
    change_tensors(tmp_path / "model.safetensors", **{ids: torch.arange(577)[None]})
    assert answers(load(tmp_path, None)) == answers(load(tiny, None))  # old exports have them
    norm = torch.ones(64, dtype=torch.int8)
    change_tensors(tmp_path / "model.safetensors", **{"model.norm.weight": norm})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight in .* has the dtype I8"):
        load(tmp_path, None)


def test_a_head_that_is_tied_and_not_stored(tiny: Path, adapter: Path, tmp_path: Path) -> None:
    for file in tiny.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing tensors, e\.g\. lm_head.weight"):
        load(tmp_path, None)
    change_json(tmp_path / "config.json", tie_word_embeddings=True)
    engine = load(tmp_path, None)
    assert len(answers(engine)[0]) == COUNT
    with pytest.raises(CheckpointError, match=r"shares with its (head|embedding)"):
        load(tmp_path, adapter)


def test_what_the_adapter_is_called(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert adapter_name(f"{tmp_path}/mine/") == "mine"
    assert adapter_name("someone/phi-3-vision-lora") == "someone/phi-3-vision-lora"

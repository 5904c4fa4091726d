"""The network against the golden values of the original implementation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from model.phi3v.inputs.processing import PromptInputs
from model.phi3v.modeling import Phi3VForCausalLM
from tests.support.engines.golden_data import CASES, golden_inputs
from tests.support.engines.oracle import greedy, tower_inputs


@pytest.fixture(scope="module")
def network(golden: Path) -> Phi3VForCausalLM:
    return Phi3VForCausalLM.from_pretrained(golden / "tiny-phi3v", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def logits(golden: Path) -> dict[str, torch.Tensor]:
    return load_file(golden / "logits.safetensors")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, golden_cases: list[dict[str, Any]]) -> dict[str, Any]:
    return next(case for case in golden_cases if case["name"] == request.param)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def model_inputs(inputs: PromptInputs) -> dict[str, Any]:
    return {"input_ids": torch.tensor([inputs.token_ids]), **tower_inputs(inputs)}


def test_golden_names_are_all_tested(golden_cases: list[dict[str, Any]]) -> None:
    assert [case["name"] for case in golden_cases] == CASES


def test_input_ids(case: dict[str, Any], golden: Path) -> None:
    inputs = golden_inputs(case, golden)
    # Any negative id marks an image position.
    assert inputs.token_ids == [max(-1, token_id) for token_id in case["input_ids"]]
    assert len(inputs.token_ids) == case["prompt_tokens"]


def test_image_features(
    case: dict[str, Any],
    golden: Path,
    network: Phi3VForCausalLM,
    logits: dict[str, torch.Tensor],
) -> None:
    images = golden_inputs(case, golden).decoded
    assert len(images) == (case["image"] is not None)
    if not images:
        return
    (image,) = images
    (features,) = network.model.vision_embed_tokens([image.crops()], [image.grid])
    torch.testing.assert_close(
        features, logits[f"{case['name']}/image_features"], atol=1e-4, rtol=0
    )


def test_logits(
    case: dict[str, Any],
    golden: Path,
    network: Phi3VForCausalLM,
    logits: dict[str, torch.Tensor],
) -> None:
    computed = network(**model_inputs(golden_inputs(case, golden))).logits[0]
    name = case["name"]
    torch.testing.assert_close(computed[-1], logits[f"{name}/last_logits"], atol=2e-3, rtol=0)
    some = computed[logits[f"{name}/logits_positions"], ::8]
    torch.testing.assert_close(some, logits[f"{name}/logits"], atol=2e-3, rtol=0)


def test_generate(case: dict[str, Any], golden: Path, network: Phi3VForCausalLM) -> None:
    """The oracle of the engine's tests is itself right, also across the regime boundary."""
    inputs = model_inputs(golden_inputs(case, golden))
    ids = inputs.pop("input_ids")
    assert greedy(network, ids, 64, **inputs) == case["greedy_no_cache"]


def test_save_and_load_again(golden: Path, network: Phi3VForCausalLM, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    assert names == load_file(golden / "tiny-phi3v" / "model.safetensors").keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, device_map="cpu")
    assert isinstance(again, Phi3VForCausalLM)
    for (name, before), after in zip(
        network.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(before, after), name
    ids = torch.tensor([[1, 32010, 29871, 13]])
    assert torch.equal(network(input_ids=ids).logits, again(input_ids=ids).logits)


def test_official_names_and_config(official: Path) -> None:
    """Every name of the official index is consumed, and nothing else is needed."""
    index = json.loads((official / "model.safetensors.index.json").read_text())
    config = AutoConfig.from_pretrained(official)
    with torch.device("meta"):
        network = Phi3VForCausalLM(config)
    on_disk = {
        name.replace("img_processor.", "img_processor.vision_model."): tensor
        for name, tensor in network.state_dict().items()
    }
    assert on_disk.keys() == index["weight_map"].keys()
    total = sum(2 * tensor.numel() for tensor in on_disk.values())
    assert total == index["metadata"]["total_size"]
    assert config.context_window == 131072
    assert config.rope_parameters["rope_type"] == "longrope"

"""The names that trainers leave, and the official ones."""

from __future__ import annotations

import pytest

from model.phi3v.weights.names import EMBEDDING, HEAD, naming, official_name

LAYER = "model.layers.3.mlp.down_proj.weight"
TOWER = "model.vision_embed_tokens.img_processor.vision_model.encoder.layers.0.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("name", "official"),
    [
        (LAYER, LAYER),
        (TOWER, TOWER),
        (TOWER.replace("vision_model.", ""), TOWER),
        (f"base_model.model.{LAYER}", LAYER),
        (f"module.base_model.model._orig_mod.{LAYER}", LAYER),
        (LAYER.replace("mlp.", "_fsdp_wrapped_module.mlp._checkpoint_wrapped_module."), LAYER),
        (LAYER.replace(".weight", ".base_layer.weight"), LAYER),
        ("base_model.model.lm_head.modules_to_save.default.weight", HEAD),
        ("model.vision_embed_tokens.wte.weight", EMBEDDING),
        ("transformer.h.0.attn.weight", "transformer.h.0.attn.weight"),  # of another model
    ],
)
def test_official_names(name: str, official: str) -> None:
    assert official_name(name) == official


def test_of_several_copies_the_trained_or_the_official_one_is_read() -> None:
    second, saved = "model.vision_embed_tokens.wte.weight", "lm_head.modules_to_save.x.weight"
    found = naming([second, EMBEDDING, "lm_head.original_module.weight", saved])
    assert found.names == {EMBEDDING: EMBEDDING, HEAD: saved}
    assert found.extra.keys() == {second, "lm_head.original_module.weight"}
    assert naming([second]).names == {EMBEDDING: second}
    assert not found.is_official
    assert naming([LAYER, HEAD]).is_official
    assert naming([f"{LAYER.removesuffix('.weight')}.lora_A.default.weight"]).unmerged

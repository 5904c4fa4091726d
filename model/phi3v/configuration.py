"""``Phi3VConfig``: a transformers config for the official, unchanged ``config.json``.

Adds the vision keys (``img_processor``, ``embd_layer``) to ``Phi3Config``, and rejects values that the
public checkpoints do not use and this code does not implement.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, Phi3Config

# CLIP ViT-L/14-336. The official config names the tower ("openai/clip-vit-large-patch14-336") but
# has no sizes; other checkpoints have them in img_processor["vision_config"].
VIT_L_14_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 768,
}

_EMBD_LAYER_SUPPORTED = {
    "embedding_cls": "image",
    "hd_transform_order": "sub_glb",
    "projection_cls": "mlp",
    "use_hd_transform": True,
    "with_learnable_separator": True,
}

_SMALLEST = {
    "vocab_size": 1,
    "hidden_size": 1,
    "intermediate_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2,  # a prompt token and an answer token
    "original_max_position_embeddings": 2,  # LongRoPE divides by its logarithm
}


@strict
class Phi3VConfig(Phi3Config):
    """Configuration of Phi-3-vision (``model_type`` ``phi3_v``).

    ``rope_scaling`` of type ``su`` becomes transformers' ``longrope``; see ``model.phi3v.rope``.
    """

    model_type = "phi3_v"

    img_processor: dict[str, Any] | None = None
    embd_layer: dict[str, Any] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.img_processor = dict(self.img_processor or {})
        self.embd_layer = dict(self.embd_layer or _EMBD_LAYER_SUPPORTED)
        for key, supported in _EMBD_LAYER_SUPPORTED.items():
            if self.embd_layer.get(key, supported) != supported:
                raise ValueError(
                    f"embd_layer.{key} = {self.embd_layer[key]!r} is not supported; "
                    f"Phi-3-vision checkpoints use {supported!r}"
                )
        for key, smallest in _SMALLEST.items():
            value = getattr(self, key)
            if isinstance(value, int) and value < smallest:
                raise ValueError(f"{key} = {value} is too small; it must be at least {smallest}")
        if (self.sliding_window or 2) < 2:
            raise ValueError(f"sliding_window = {self.sliding_window} is too small")
        # The official config requests flash_attention_2, which depends on the machine, not the weights.
        # The attn_implementation argument of from_pretrained still works.
        kwargs.pop("_attn_implementation", None)
        super().__post_init__(**kwargs)

    def convert_rope_params_to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Rename the official rope type before transformers standardizes the parameters.

        After that, ``su`` would lack ``original_max_position_embeddings``.
        """
        rope_scaling = kwargs.get("rope_scaling")
        if rope_scaling and rope_scaling.get("type", rope_scaling.get("rope_type")) == "su":
            factor = self.max_position_embeddings / self.original_max_position_embeddings
            kwargs["rope_scaling"] = {
                **rope_scaling, "type": "longrope", "rope_type": "longrope", "factor": factor
            }  # fmt: skip
        return super().convert_rope_params_to_dict(*args, **kwargs)

    @property
    def vision_config(self) -> CLIPVisionConfig:
        """Sizes of the CLIP tower: those in ``img_processor``, or ViT-L/14-336."""
        sizes = (self.img_processor or {}).get("vision_config") or VIT_L_14_336
        return CLIPVisionConfig(**sizes)

    @property
    def context_window(self) -> int:
        """Longest sequence, in tokens, with full attention.

        The sliding window limits it too, because a longer sequence would silently lose the start of
        the prompt.
        """
        return min(
            self.max_position_embeddings, self.sliding_window or self.max_position_embeddings
        )

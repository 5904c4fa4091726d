"""``Phi3VForCausalLM``: Phi-3-vision as a transformers model class.

Combines transformers' Phi-3 decoder and CLIP tower under the official tensor names, so that
``from_pretrained``, ``save_pretrained``, ``device_map`` and ``generate`` work. The engine loads weights
with this class but runs the decoder itself (``model.phi3v.decoder``); tests compare it with
``generate`` on one prompt at a time.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Phi3ForCausalLM, Phi3Model
from transformers.modeling_outputs import CausalLMOutputWithPast

from model.phi3v.configuration import Phi3VConfig
from model.phi3v.vision import Phi3VImageEmbedding

# CLIP exports of older transformers versions contain this buffer, which only holds 0, 1, 2, ...
IGNORED_ON_LOAD = [r"img_processor\.vision_model\.embeddings\.position_ids$"]


class Phi3VModel(Phi3Model):
    """The decoder with token and image embeddings."""

    config: Phi3VConfig

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.vision_embed_tokens = Phi3VImageEmbedding(config)
        self.post_init()

    def embed(
        self,
        input_ids: Tensor,
        pixel_values: list[Tensor] | None = None,
        image_grids: list[tuple[int, int]] | None = None,
    ) -> Tensor:
        """Token embeddings with image embeddings at negative ids, ``(..., hidden)``.

        Like the original processor, negative ids mark image positions, because no vocabulary entry
        has one.
        """
        embeddings = self.embed_tokens(input_ids.clamp(min=0))
        images = self.vision_embed_tokens(pixel_values, image_grids or []) if pixel_values else []
        places = input_ids < 0
        filled = sum(len(image) for image in images)
        if int(places.sum()) != filled:
            raise ValueError(
                f"the prompt has {int(places.sum())} image positions, but the images have {filled}"
            )
        if images:
            embeddings[places] = torch.cat(images).to(embeddings.device, embeddings.dtype)
        return embeddings


class Phi3VForCausalLM(Phi3ForCausalLM):
    """Phi-3-vision with its language model head.

    Exact only for one prompt at a time, because transformers chooses LongRoPE's factors per batch.
    """

    config: Phi3VConfig
    config_class = Phi3VConfig
    _no_split_modules = ["Phi3DecoderLayer", "CLIPEncoderLayer", "CLIPVisionEmbeddings"]
    _keys_to_ignore_on_load_unexpected = IGNORED_ON_LOAD

    def __init__(self, config: Phi3VConfig) -> None:
        # Skip Phi3ForCausalLM's constructor, which would create a second decoder.
        super(Phi3ForCausalLM, self).__init__(config)
        self.model = Phi3VModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: list[Tensor] | None = None,
        image_grids: list[tuple[int, int]] | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of a prompt.

        Args:
            input_ids: ``(1, T)``; negative ids mark image positions.
            pixel_values: per image ``(C, 3, 336, 336)``, from ``ImageProcessor``.
            image_grids: per image, rows and columns of its crops.
            inputs_embeds: instead of ``input_ids``.
            attention_mask, position_ids, logits_to_keep, kwargs: as for ``Phi3ForCausalLM``;
                named because ``generate`` reads the names from this signature.
        """
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds = self.model.embed(input_ids, pixel_values, image_grids)
        return super().forward(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Pass images only to steps that compute the prompt: the first, and after a regime change."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        ids = inputs.get("input_ids")
        sees_prompt = ids is not None and bool((ids < 0).any())
        for name in ("pixel_values", "image_grids"):
            inputs[name] = kwargs.get(name) if sees_prompt else None
        return inputs


def official_shapes(config: Phi3VConfig) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes on disk, where the tower's names contain ``vision_model``."""
    with torch.device("meta"):
        state = Phi3VForCausalLM(config).state_dict()
    return {
        name.replace("img_processor.", "img_processor.vision_model."): tuple(tensor.shape)
        for name, tensor in state.items()
    }


def is_ignored(name: str) -> bool:
    """Whether a tensor of a checkpoint, by its official name, is not loaded, and rightly so."""
    return any(re.search(pattern, name) for pattern in IGNORED_ON_LOAD)


AutoConfig.register("phi3_v", Phi3VConfig)
AutoModelForCausalLM.register(Phi3VConfig, Phi3VForCausalLM)

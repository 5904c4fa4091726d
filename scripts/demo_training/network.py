"""The demo model's sizes and its network, as it is trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.demo.random_checkpoint import Preset, _config
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.vision import _merge_patches

NAME = "phi3v-demo-shapes"
SIZES = Preset(
    hidden_size=192,
    intermediate_size=448,
    num_layers=4,
    num_heads=6,
    original_length=4096,
    max_length=131072,
    tower_width=160,
    tower_layers=5,  # the features are those before the last
    tower_heads=4,
    tower_intermediate=480,
    num_crops=1,
)


def demo_config(vocab_size: int) -> dict[str, Any]:
    """The content of the demo's ``config.json``."""
    return {**_config(SIZES, NAME), "vocab_size": vocab_size}


TOWER: dict[str, Any] = _config(SIZES, NAME)["img_processor"]["vision_config"]
PATCH = int(TOWER["patch_size"])


def new_model(config: Phi3VConfig) -> Phi3VForCausalLM:
    """A model with fresh weights in the projection and the decoder."""
    model = Phi3VForCausalLM(config).float()
    embedding = model.model.vision_embed_tokens
    with torch.no_grad():
        for name, weight in model.model.layers.named_parameters():
            if weight.ndim == 2:
                out = 0.4 if "o_proj" in name or "down_proj" in name else 1.0
                weight.normal_(0, out * weight.shape[1] ** -0.5)
        model.model.embed_tokens.weight.normal_(0, 0.5)
        model.lm_head.weight.normal_(0, 0.3 * config.hidden_size**-0.5)
        for linear in (embedding.img_projection[0], embedding.img_projection[2]):
            linear.weight.normal_(0, linear.weight.shape[1] ** -0.5)
            linear.bias.zero_()
        embedding.glb_GN.normal_(0, 0.5)
        embedding.sub_GN.normal_(0, 0.5)
    return model


def init_tower(tower: Any, seed: int) -> None:
    """Start positions as sines of rows and columns, and each query equal to its key.

    Both make patches attend to their neighbours from the first step, which saves a tower that
    learns from few pictures much of the way ("mimetic initialization", arXiv:2305.09828).
    """
    generator = torch.Generator().manual_seed(seed)
    width = tower.embeddings.position_embedding.weight.shape[1]
    with torch.no_grad():
        side = int((tower.embeddings.position_embedding.weight.shape[0] - 1) ** 0.5)
        place = torch.arange(side).float()
        quarter = width // 4
        frequency = 1.5 * (0.1 ** (torch.arange(quarter) / quarter))
        angle = place[:, None] * frequency
        waves = torch.cat([angle.sin(), angle.cos()], 1)
        rows = waves[:, None].expand(side, side, -1)
        columns = waves[None].expand(side, side, -1)
        places = torch.cat([rows, columns], -1).flatten(0, 1)
        tower.embeddings.position_embedding.weight[1:] = 0.5 * places
        tower.embeddings.position_embedding.weight[0] = 0
        tower.embeddings.class_embedding.normal_(0, 0.3, generator=generator)
        patch = tower.embeddings.patch_embedding.weight
        patch.normal_(0, patch[0].numel() ** -0.5, generator=generator)
        for layer in tower.encoder.layers:
            attention = layer.self_attn
            for linear in (attention.q_proj, attention.v_proj, attention.out_proj, layer.mlp.fc1):
                linear.weight.normal_(0, width**-0.5, generator=generator)
                linear.bias.zero_()
            layer.mlp.fc2.weight.normal_(
                0, 0.5 * layer.mlp.fc2.weight.shape[1] ** -0.5, generator=generator
            )
            layer.mlp.fc2.bias.zero_()
            attention.out_proj.weight.mul_(0.5)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
            attention.k_proj.bias.zero_()


def tower_features(tower: Any, pixels: Tensor, corners: Tensor | None = None) -> Tensor:
    """Merged patches ``(B, 144, 4 W)``: what ``Phi3VImageEmbedding`` computes of single crops.

    Attention is written out: on CPUs torch's own is half as fast, above all backwards.

    Args:
        tower: CLIP's.
        pixels: ``(B, 3, side, side)``; smaller than 336, they are windows of a view.
        corners: of windows, row and column in patches; ``(B, 2)``.
    """
    embeddings = tower.embeddings
    patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    count, side = len(pixels), int(patches.shape[1] ** 0.5)
    whole = int(embeddings.num_patches**0.5)
    if corners is None:
        corners = torch.zeros(count, 2, dtype=torch.int64)
    row = corners[:, :1, None] + torch.arange(side)[None, :, None]
    column = corners[:, 1:, None] + torch.arange(side)[None, None]
    places = embeddings.position_embedding((1 + row * whole + column).flatten(1))
    first = embeddings.class_embedding + embeddings.position_embedding.weight[0]
    hidden = torch.cat([first.expand(count, 1, -1), patches + places], 1)
    hidden = tower.pre_layrnorm(hidden)
    for layer in tower.encoder.layers[:-1]:
        hidden = hidden + _attention(layer.self_attn, layer.layer_norm1(hidden))
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return _merge_patches(hidden[:, 1:]).flatten(1, 2)


def _attention(module: Any, hidden: Tensor) -> Tensor:
    heads = module.num_heads
    query, key, value = (
        linear(hidden).unflatten(-1, (heads, -1)).transpose(1, 2)
        for linear in (module.q_proj, module.k_proj, module.v_proj)
    )
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    return module.out_proj(
        (scores.softmax(-1, dtype=scores.dtype) @ value).transpose(1, 2).flatten(2)
    )


class CellHeads(nn.Module):
    """What the tower is taught before there is a language model; thrown away afterwards."""

    def __init__(self, width: int, things: int, colours: int, most: int) -> None:
        super().__init__()
        self.sizes = [1 + things, colours, 3, 1, most, most + 1]
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, sum(self.sizes))

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits of thing, colour, box, centre, rank and count, per cell."""
        return list(self.linear(self.norm(features)).float().split(self.sizes, -1))


def cell_losses(outputs: list[Tensor], marks: Any) -> dict[str, Tensor]:
    """Losses of ``CellHeads``' outputs."""
    thing, colour, box, centre, rank, count = outputs
    covered, centres = marks.thing > 0, marks.centre > 0
    weight = torch.where(centres, 1.5, torch.where(covered, 0.7, 0.12))
    # A large thing covers many cells: without this it would outweigh the others.
    per_cell = functional.cross_entropy(
        thing.flatten(0, 1), marks.thing.flatten(), reduction="none"
    )
    at_centres = lambda logits, target: functional.cross_entropy(logits[centres], target[centres])  # noqa: E731
    return {
        "thing": (per_cell * weight.flatten()).sum() / weight.sum(),
        "at centre": at_centres(thing, marks.thing),
        "colour": functional.cross_entropy(colour[covered], marks.colour[covered]),
        "box": functional.smooth_l1_loss(box[covered], marks.box[covered], beta=0.3),
        "centre": 2 * functional.binary_cross_entropy_with_logits(
            centre[..., 0], marks.centre, pos_weight=torch.tensor(8.0)
        ),
        "rank": 0.4 * at_centres(rank, marks.rank),
        "count": 0.3 * at_centres(count, marks.count),
    }  # fmt: skip

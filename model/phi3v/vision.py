"""Computes image embeddings for the language model from crops.

CLIP tower (without its last layer and final norm: the features are ``hidden_states[-2]``), 2x2 patch
merge, layout of crops on their grid, learned separators, projection to the hidden size. Parameter names
are the official ones on disk.

Shape suffixes: C crops (global view first), N patches of a crop (24 x 24), W tower width,
M merged width (4 W), P image tokens, E hidden size.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel

from model.phi3v.configuration import Phi3VConfig
from model.phi3v.transfer import to_device

MERGE = 2  # patches merged along each side
CROPS_PER_PASS_CPU = 1  # more are not faster, and stall streams for longer
ROWS_PER_PART = 512  # image tokens projected between pauses
CROPS_PER_PASS_GPU = 68  # four images of 17 crops


class Phi3VImageEmbedding(nn.Module):
    """The vision half of Phi-3-vision."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        vision_config = config.vision_config
        merged = vision_config.hidden_size * MERGE * MERGE
        self.img_processor = CLIPVisionModel(vision_config)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, merged))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, merged))
        self.img_projection = nn.Sequential(
            nn.Linear(merged, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )

    def forward(self, pixel_values: list[Tensor], grids: list[tuple[int, int]]) -> list[Tensor]:
        """Embed images with their crops in one batch.

        Args:
            pixel_values: per image, ``(C, 3, 336, 336)`` normalised crops, global view first, no
                padding crops.
            grids: per image, rows and columns of its crops after the global view.

        Returns:
            Per image ``(P, E)``, in the order of its image tokens.
        """
        parts = self.in_parts(pixel_values, grids)
        while True:
            try:
                next(parts)
            except StopIteration as end:
                return end.value

    def in_parts(
        self, pixel_values: list[Tensor], grids: list[tuple[int, int]]
    ) -> Generator[None, None, list[Tensor]]:
        """Like ``forward``, but yields after each layer and each part of the projection."""
        crops = [pixels.shape[0] for pixels in pixel_values]
        patches_CNW = yield from self.patch_features(torch.cat(pixel_values))
        images = []
        for image_CNW, grid in zip(patches_CNW.split(crops), grids, strict=True):
            projected = []
            for part in self._lay_out(image_CNW, grid).split(ROWS_PER_PART):
                projected.append(self.img_projection(part))
                yield
            images.append(torch.cat(projected))
        return images

    @property
    def device(self) -> torch.device:
        """The device that computes it."""
        return self.glb_GN.device

    @property
    def dtype(self) -> torch.dtype:
        """What it converts pixels to."""
        dtype: torch.dtype = self.img_processor.embeddings.patch_embedding.weight.dtype
        return dtype

    @property
    def crops_per_pass(self) -> int:
        """Number of crops that the tower computes together."""
        return CROPS_PER_PASS_CPU if self.device.type == "cpu" else CROPS_PER_PASS_GPU

    def patch_features(self, pixels: Tensor) -> Generator[None, None, Tensor]:
        """CLIP ``hidden_states[-2]`` without class token, ``(C, N, W)``; yields after each layer."""
        tower = self.img_processor
        pixels = to_device(pixels, self.device).to(self.dtype)
        parts = []
        for chunk in pixels.split(self.crops_per_pass):
            hidden = tower.pre_layrnorm(tower.embeddings(chunk))
            for layer in tower.encoder.layers[:-1]:
                hidden = layer(hidden, attention_mask=None)
                yield
            parts.append(hidden[:, 1:])
        return torch.cat(parts)

    def _lay_out(self, patches_CNW: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tiles in reading order with a separator after each row, ``glb_GN``, global view."""
        rows, columns = grid
        merged = merge_patches(patches_CNW)  # (C, side, side, M)
        side = merged.shape[1]
        global_view, tiles = merged[:1], merged[1:]
        tiles = (
            tiles.reshape(rows, columns, side, side, -1)
            .permute(0, 2, 1, 3, 4)
            .reshape(1, rows * side, columns * side, -1)
        )
        return torch.cat([self._end_rows(tiles), self.glb_GN[0], self._end_rows(global_view)])

    def _end_rows(self, view: Tensor) -> Tensor:
        """Append ``sub_GN`` to each row of ``(1, H, W, M)`` and flatten to ``(H * (W + 1), M)``."""
        separator = self.sub_GN.expand(1, view.shape[1], 1, -1)
        return torch.cat([view, separator], dim=2).flatten(0, 2)


def merge_patches(patches_CNW: Tensor) -> Tensor:
    """Concatenate each 2x2 square of patches: ``(C, N, W)`` to ``(C, side/2, side/2, 4 W)``."""
    crops, count, width = patches_CNW.shape
    side = int(count**0.5)
    half = side // MERGE
    return (
        patches_CNW.reshape(crops, half, MERGE, half, MERGE, width)
        .permute(0, 1, 3, 2, 4, 5)
        .reshape(crops, half, half, MERGE * MERGE * width)
    )

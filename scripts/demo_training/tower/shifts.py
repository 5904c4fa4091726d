"""The demo's vision tower during training: each head copies from a patch at a fixed offset.

A vision transformer needs millions of pictures to learn where to attend. Here each head of a layer
copies the patch at a fixed distance up, down, left or right, as in a convolution, which needs no
attention scores and a tenth of the pictures. ``clip_tower`` converts this to an equivalent CLIP tower:
some channels of the position embedding encode row and column, and queries and keys that read only
those make each head attend to one patch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from model.demo.random_checkpoint import CLIP_MEAN, CLIP_STD
from model.phi3v.vision import merge_patches
from scripts.demo_training.network import PATCH, SIDE, TOWER

WIDTH = int(TOWER["hidden_size"])
PLACES = 2 * SIDE  # channels that encode row and column; constant through the layers
CONTENT = WIDTH - PLACES
DISTANCES = (1, 2, 4, 8, 1, 2, 4, 1)  # in patches, by layer
DIRECTIONS = ((-1, 0), (1, 0), (0, -1), (0, 1))  # row and column, by head
# Position channels are much larger than the content, so that layer norms scale them almost equally in
# all patches, and the target patch always has the highest score.
PLACE = 40.0
PLACE_GAIN = 20.0  # of the first norm
CONTENT_GAIN = 8.0  # initial gain of all norms, which scale the content down
SHARPNESS = 20.0  # makes that score several hundred; others in its row or column have half of it
LOUDEST = 8.0  # limit of the content, enforced by a loss; otherwise it grows with every layer


class Norm(nn.Module):
    """A layer norm with learned weights only for the content channels."""

    def __init__(self, place_gain: float = 1.0) -> None:
        super().__init__()
        self._place_gain = place_gain
        self.weight = nn.Parameter(torch.full((CONTENT,), CONTENT_GAIN))
        self.bias = nn.Parameter(torch.zeros(CONTENT))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of all channels."""
        weight = functional.pad(self.weight, (0, PLACES), value=self._place_gain)
        return weight, _padded(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.layer_norm(hidden, (WIDTH,), *self.affine(), 1e-5)


class ShiftLayer(nn.Module):
    """A layer whose heads copy from ``distance`` patches away, or from the view's edge."""

    def __init__(self, distance: int) -> None:
        super().__init__()
        inner = int(TOWER["intermediate_size"])
        self.distance = distance
        self.norm1, self.norm2 = Norm(), Norm()
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CONTENT)
        self.fc1, self.fc2 = nn.Linear(WIDTH, inner), nn.Linear(inner, CONTENT)
        for linear, gain in ((self.value, 1.0), (self.out, 0.5), (self.fc1, 1.0), (self.fc2, 0.5)):
            nn.init.normal_(linear.weight, 0, gain * linear.in_features**-0.5)
            nn.init.zeros_(linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        parts = self.value(self.norm1(hidden)).chunk(len(DIRECTIONS), -1)
        moved = [
            _from(part, 1 if row else 2, self.distance * (row or column))
            for part, (row, column) in zip(parts, DIRECTIONS, strict=True)
        ]
        hidden = hidden + _padded(self.out(torch.cat(moved, -1)))
        inner = self.fc1(self.norm2(hidden))
        return hidden + _padded(self.fc2(inner * torch.sigmoid(1.702 * inner)))


def _padded(content: Tensor) -> Tensor:
    return functional.pad(content, (0, PLACES))


def _from(part: Tensor, dim: int, offset: int) -> Tensor:
    """Shift by ``offset`` along a dimension, repeating the edge."""
    count = part.shape[dim]
    inside = max(0, count - abs(offset))
    edge = part.narrow(dim, count - 1 if offset > 0 else 0, 1)
    shape = list(part.shape)
    shape[dim] = count - inside
    if offset > 0:
        return torch.cat([part.narrow(dim, count - inside, inside), edge.expand(shape)], dim)
    return torch.cat([edge.expand(shape), part.narrow(dim, 0, inside)], dim)


class ShiftTower(nn.Module):
    """The tower up to the layer whose output is used."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(3 * PATCH * PATCH, CONTENT, bias=False)
        nn.init.normal_(self.patches.weight, 0, self.patches.in_features**-0.5)
        self.norm = Norm(PLACE_GAIN)
        self.layers = nn.ModuleList(ShiftLayer(distance) for distance in DISTANCES)

    def forward(self, views: Tensor, corners: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Merged patches ``(B, cells, 4 WIDTH)``, as in ``Phi3VImageEmbedding``, and the mean square
        of the layers' content, which should be below 1.

        Args:
            views: ``(B, side, side, 3)`` uint8; windows of a view if smaller than 336.
            corners: row and column of windows, in patches, ``(B, 2)``.
        """
        count, side = len(views), views.shape[1] // PATCH
        mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
        pixels = ((views / 255 - mean) / std).view(count, side, PATCH, side, PATCH, 3)
        content = self.patches(pixels.permute(0, 1, 3, 5, 2, 4).flatten(3))
        first = torch.zeros(count, 2, dtype=torch.int64) if corners is None else corners
        rows, columns = (
            PLACE * functional.one_hot(first[:, i, None] + torch.arange(side), SIDE) for i in (0, 1)
        )
        shape = (count, side, side, SIDE)
        places = [rows[:, :, None].expand(shape), columns[:, None].expand(shape)]
        hidden = self.norm(torch.cat([content.float(), *places], -1))
        loudness = []
        for layer in self.layers:
            hidden = layer(hidden)
            loudness.append((hidden[..., :CONTENT] / LOUDEST).square().mean())
        return merge_patches(hidden.flatten(1, 2)).flatten(1, 2), torch.stack(loudness).mean()


@torch.no_grad()
def clip_tower(tower: ShiftTower) -> CLIPVisionModel:
    """An equivalent CLIP tower; its last layer, which is unused, is zero."""
    clip = CLIPVisionModel(CLIPVisionConfig(**TOWER)).eval().requires_grad_(False)
    for parameter in clip.parameters():
        parameter.zero_()
    embeddings = clip.embeddings
    embeddings.patch_embedding.weight[:CONTENT] = tower.patches.weight.view(-1, 3, PATCH, PATCH)
    places = PLACE * torch.eye(SIDE)
    rows = places[:, None].expand(-1, SIDE, -1)
    columns = places[None].expand(SIDE, -1, -1)
    embeddings.position_embedding.weight[1:, CONTENT:] = torch.cat([rows, columns], -1).flatten(
        0, 1
    )
    _copy_norm(clip.pre_layrnorm, tower.norm)
    for into, layer in zip(clip.encoder.layers, tower.layers, strict=False):
        assert isinstance(layer, ShiftLayer)
        attention = into.self_attn
        attention.v_proj.load_state_dict(layer.value.state_dict())
        _copy_rows(attention.out_proj, layer.out)
        into.mlp.fc1.load_state_dict(layer.fc1.state_dict())
        _copy_rows(into.mlp.fc2, layer.fc2)
        _copy_norm(into.layer_norm1, layer.norm1)
        _copy_norm(into.layer_norm2, layer.norm2)
        wanted = [
            _wanted(layer.distance * row, layer.distance * column) for row, column in DIRECTIONS
        ]
        attention.q_proj.weight[:, CONTENT:] = torch.cat(wanted) * SHARPNESS
        attention.k_proj.weight[:, CONTENT:] = torch.eye(PLACES).repeat(len(DIRECTIONS), 1)
    return clip


def _wanted(row: int, column: int) -> Tensor:
    """Map a patch's position channels to those of the target patch; columns add up to 0.

    Layer norm subtracts the same amount from all channels, which a sum of zero cancels.
    """
    moved = []
    for offset in (row, column):
        target = (torch.arange(SIDE) + offset).clamp(0, SIDE - 1)
        moved.append(functional.one_hot(target, SIDE).T - 1 / SIDE)
    return torch.block_diag(*moved)


def _copy_rows(into: Any, linear: nn.Linear) -> None:
    into.weight[:CONTENT], into.bias[:CONTENT] = linear.weight, linear.bias


def _copy_norm(into: Any, norm: Norm) -> None:
    weight, bias = norm.affine()
    into.weight.copy_(weight)
    into.bias.copy_(bias)

"""Floating-point operations up to the first token of an answer about an image, from the sizes.

A product of ``(M, K)`` with ``(K, N)`` counts as ``2 M K N``. Norms, activations, softmax and
rotations are below one percent and not counted. Neither is what the answer does not need: the tower's
last layer, half of the causal attention, and all logits but one token's.

Per crop of ``N`` = 577 positions, tower width ``W``, MLP width ``I``, ``L`` layers in total:
    patches            2 (N - 1) (3 * 14 * 14) W
    L - 1 layers of    8 N W^2  (q, k, v, out)  +  4 N W I  (MLP)  +  4 N^2 W  (attention)
Projector, per image token:    2 (4 W) E + 2 E^2
Decoder of ``L`` layers, hidden size ``E``, MLP width ``I``, on ``T`` tokens:
    L layers of        8 T E^2  (qkv, o)  +  6 T E I  (gate, up, down)  +  2 T^2 E  (attention)
    logits             2 E V
with fewer keys and values for grouped heads. torch's ``FlopCounterMode`` counts the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.phi3v.configuration import Phi3VConfig


@dataclass(frozen=True)
class Operations:
    """Floating-point operations up to the first token."""

    tower: float
    projector: float
    decoder: float

    @property
    def total(self) -> float:
        return self.tower + self.projector + self.decoder


def operations(config: Phi3VConfig, crops: int, image_tokens: int, tokens: int) -> Operations:
    """Count those of a prompt of ``tokens`` tokens with one image."""
    vision = config.vision_config
    W, I = vision.hidden_size, vision.intermediate_size  # noqa: E741 - as in the formula
    side, patch = vision.image_size, vision.patch_size  # of squares
    assert isinstance(side, int)
    assert isinstance(patch, int)
    N = (side // patch) ** 2 + 1
    patches = 2 * (N - 1) * 3 * patch**2 * W
    layer = 8 * N * W**2 + 4 * N * W * I + 4 * N**2 * W
    tower = crops * (patches + (vision.num_hidden_layers - 1) * layer)
    E = config.hidden_size
    projector = image_tokens * (2 * 4 * W * E + 2 * E**2)
    return Operations(tower, projector, _decoder(config, tokens))


def _decoder(config: Phi3VConfig, tokens: int) -> float:
    E, layers = config.hidden_size, config.num_hidden_layers
    weights = sum(rows * columns for rows, columns in weight_shapes(config)[:-1])
    return 2 * tokens * weights + layers * 2 * tokens**2 * E + 2 * E * config.vocab_size


def weight_shapes(config: Phi3VConfig) -> list[tuple[int, int]]:
    """Outputs and inputs of every matrix that a decode step reads; the head comes last."""
    E, I = config.hidden_size, config.intermediate_size  # noqa: E741
    heads = config.num_attention_heads
    shared = config.num_key_value_heads or heads
    qkv = E // heads * (heads + 2 * shared)
    layer = [(qkv, E), (E, E), (2 * I, E), (E, I)]
    return layer * config.num_hidden_layers + [(config.vocab_size, E)]

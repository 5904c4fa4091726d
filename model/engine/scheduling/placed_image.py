"""An image at its positions in a sequence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from model.phi3v.inputs.image_processing import ImageInputs
from model.phi3v.inputs.processing import PromptInputs


class PlacedImage:
    """An image at positions ``start`` to ``end`` of a sequence.

    Attributes:
        digest: of the image, with its request's salt.
        inputs: its crops, until the tower has run.
        embedding: ``(image tokens, hidden)``, set by the tower.
    """

    def __init__(self, start: int, inputs: ImageInputs, salt: bytes) -> None:
        self.start = start
        self.end = start + inputs.num_tokens
        # Salted, because the embedding cache and the vision runner use it as a key too.
        self.digest = salt + inputs.digest
        self.inputs: ImageInputs | None = inputs
        self.embedding: Tensor | None = None

    def embed(self, embedding: Tensor) -> None:
        """Replace the crops by their embedding."""
        self.embedding, self.inputs = embedding, None

    def embeddings(self, start: int, end: int) -> Tensor:
        """Embeddings of the sequence's positions ``start`` to ``end``, which are all the image's."""
        assert self.embedding is not None, "image tokens were scheduled before the tower ran"
        return self.embedding[start - self.start : end - self.start]


def place_images(prompt: PromptInputs, salt: bytes) -> Sequence[PlacedImage]:
    """The images of a prompt, in order of position.

    Args:
        prompt: the prompt.
        salt: of its request, from ``salt_digest``.
    """
    placed: list[PlacedImage] = []
    for number, inputs in enumerate(prompt.images, 1):
        after = placed[-1].end if placed else 0
        placed.append(PlacedImage(prompt.token_ids.index(-number, after), inputs, salt))
    return placed

"""An image at its positions in a sequence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from model.phi3v.inputs.image_processing import EmbeddedImage, ImageInputs
from model.phi3v.inputs.processing import PromptImage, PromptInputs


class PlacedImage:
    """An image at positions ``start`` to ``end`` of a sequence.

    Attributes:
        digest: of the image, with its request's salt.
        inputs: its pixels, until the tower has run.
        embedding: ``(image tokens, hidden)``, set by the tower unless the image was seen before.
    """

    def __init__(self, start: int, image: PromptImage, salt: bytes) -> None:
        self.start = start
        self.end = start + image.num_tokens
        # Salted, because the embedding cache and the vision runner use it as a key too.
        self.digest = salt + image.digest
        self.inputs: ImageInputs | None = None
        self.embedding: Tensor | None = None
        self._lent: EmbeddedImage | None = None  # keeps the embedding in its cache
        if isinstance(image, ImageInputs):
            self.inputs = image
        else:
            self._lent, self.embedding = image, image.embedding

    def embed(self, embedding: Tensor) -> None:
        """Replace the pixels by their embedding."""
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
    for number, image in enumerate(prompt.images, 1):
        after = placed[-1].end if placed else 0
        placed.append(PlacedImage(prompt.token_ids.index(-number, after), image, salt))
    return placed

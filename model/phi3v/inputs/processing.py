"""Converts messages to prompt inputs: token ids with image positions, and the images.

Pure computation on the CPU; the engine runs it in worker threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from model.errors import ContextLengthError, ImageError, RequestError
from model.phi3v.inputs.chat import (
    ImageFile,
    Message,
    MessageImage,
    Piece,
    Prompt,
    Text,
    render,
)
from model.phi3v.inputs.image_processing import (
    SMALLEST_IMAGE,
    EmbeddedImage,
    ImageInputs,
    ImageProcessor,
)
from model.phi3v.inputs.tokenizer import Phi3VTokenizer

SEVERAL_CROPS = 4  # tiles of an image that is not alone, as the model's authors advise

PromptImage = ImageInputs | EmbeddedImage
Seen = Callable[[bytes], EmbeddedImage | None]  # finds an image seen before, by its digest


def nothing_seen(digest: bytes) -> None:
    """Find no image."""


@dataclass(frozen=True, eq=False)
class PromptInputs:
    """The input of a sequence.

    Attributes:
        token_ids: the prompt; ``-k`` at the positions of the k-th image, which no vocabulary entry can be
            mistaken for.
        images: the images at those positions.
    """

    token_ids: list[int]
    images: tuple[PromptImage, ...] = ()

    @property
    def decoded(self) -> list[ImageInputs]:
        """The images that were decoded: all, unless some were seen before."""
        return [image for image in self.images if isinstance(image, ImageInputs)]


@dataclass(frozen=True, eq=False)
class Draft:
    """A prompt whose images are not decoded yet.

    Attributes:
        pieces: token ids before, between and after the images.
        images: the images between the pieces.
        prepare: finds an image that was seen before; decodes and scales any other.
        max_tokens: maximum length of a prompt.
        keep: number of tokens at the end of a longer prompt to keep; None keeps all.
    """

    pieces: list[list[int]]
    images: tuple[MessageImage, ...]
    prepare: Callable[[MessageImage, Seen], PromptImage]
    max_tokens: int
    keep: int | None = None

    def finish(self, seen: Seen = nothing_seen) -> PromptInputs:
        """Complete the prompt, one image after the other; slow if there are any.

        Args:
            seen: finds images seen before, which are not decoded again.

        Raises:
            ImageError: an image cannot be decoded or cut.
            ContextLengthError: the prompt is longer than ``max_tokens``.
            RequestError: it would be cut within an image.
        """
        left = len(self.images)  # images to decode
        length = sum(map(len, self.pieces)) + left * SMALLEST_IMAGE
        self._check(length, left)
        token_ids = list(self.pieces[0])
        images: list[PromptImage] = []
        for number, (image, piece) in enumerate(zip(self.images, self.pieces[1:], strict=True), 1):
            inputs = self.prepare(image, seen)
            left -= 1
            length += inputs.num_tokens - SMALLEST_IMAGE
            self._check(length, left)
            images.append(inputs)
            token_ids += [-number] * inputs.num_tokens
            token_ids += piece
        return self._cut(token_ids, images)

    def _check(self, length: int, images_left: int) -> None:
        """Refuse a prompt that is longer than ``max_tokens`` after it is cut."""
        if self.keep is not None:
            length = min(length, self.keep)
        check_length(length, self.max_tokens, at_least=images_left > 0)

    def _cut(self, token_ids: list[int], images: list[PromptImage]) -> PromptInputs:
        """Drop all but the last ``keep`` tokens, and the images before them."""
        cut = 0 if self.keep is None else max(0, len(token_ids) - self.keep)
        if cut == 0:
            return PromptInputs(token_ids, tuple(images))
        first = token_ids[cut]
        if first < 0 and token_ids[cut - 1] == first:
            raise RequestError(
                f"truncate_prompt_tokens would cut an image: the prompt's last {self.keep} tokens "
                f"contain a part of its {images[-first - 1].num_tokens} tokens; keep more, or make "
                "the image smaller with num_crops",
                ("truncate_prompt_tokens",),
                self.keep,
            )
        dropped = -min(0, *token_ids[:cut])
        left = [token_id + dropped if token_id < 0 else token_id for token_id in token_ids[cut:]]
        return PromptInputs(left, tuple(images[dropped:]))


class Processor:
    """Chat template, tokenizer and image processor of one checkpoint.

    Args:
        tokenizer: the tokenizer.
        image_processor: the image processor.
        images_per_prompt: maximum number of images; of more, a conversation's last ones are kept.
    """

    def __init__(
        self, tokenizer: Phi3VTokenizer, image_processor: ImageProcessor, images_per_prompt: int = 1
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.images_per_prompt = images_per_prompt

    @classmethod
    def from_checkpoint(
        cls, directory: Path, images_per_prompt: int = 1, tokenizer: Path | None = None
    ) -> Processor:
        """Read the tokenizer and processor files of a checkpoint; raises CheckpointError.

        Args:
            directory: the checkpoint.
            images_per_prompt: see the class.
            tokenizer: where the tokenizer's files are, if not there.
        """
        image_processor = ImageProcessor.from_checkpoint(directory)
        return cls(Phi3VTokenizer(tokenizer or directory), image_processor, images_per_prompt)

    def __call__(
        self, messages: Sequence[Message], max_tokens: int, keep: int | None = None
    ) -> PromptInputs:
        """Tokenize a conversation and scale its last images.

        Args:
            messages: the conversation.
            max_tokens: maximum length of the prompt.
            keep: number of tokens at the end of a longer prompt to keep; None keeps all.

        Raises:
            RequestError: the messages violate the chat template's rules, an image is invalid, or it
                would be cut.
            ContextLengthError: the prompt is longer than ``max_tokens``.
        """
        return self.draft(messages, max_tokens, keep).finish()

    def draft(self, messages: Sequence[Message], max_tokens: int, keep: int | None = None) -> Draft:
        """Like a call, but leaves the images to ``Draft.finish``."""
        prompt = render(messages, self.images_per_prompt)
        self._refuse_hopeless_length(prompt, max_tokens)
        pieces = [self.tokenizer.encode(piece) for piece in prompt.pieces]
        num_crops = self.image_processor.num_crops
        if len(prompt.images) > 1:
            num_crops = min(num_crops, SEVERAL_CROPS)
        return Draft(pieces, prompt.images, partial(self._prepare, num_crops), max_tokens, keep)

    def encode_text(self, text: str, special: bool, max_tokens: int) -> list[int]:
        """Tokenize plain text; ``special`` prepends the prefix of every piece (``<s>``).

        Raises:
            ContextLengthError: the text is longer than ``max_tokens``.
        """
        piece: Piece = [Text(text)]
        self._refuse_hopeless_length(Prompt([piece]), max_tokens)
        token_ids = self.tokenizer.encode(piece, special)
        check_length(len(token_ids), max_tokens)
        return token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens: special tokens by name, and a run of image positions as its tag.

        Bytes that form no character are replaced. Raises RequestError for ids outside the vocabulary.
        """
        parts: list[bytes] = []
        most = self.tokenizer.highest_id
        for position, (before, token_id) in enumerate(pairwise([0, *token_ids])):
            if token_id > most:
                raise RequestError(
                    f"tokens.{position} is {token_id}; valid ids are 0 to {most}, and -1 for an image",
                    ("tokens", position),
                    token_id,
                )
            if token_id >= 0 or token_id != before:
                parts.append(
                    self.tokenizer.token_bytes(token_id) or self.token_text(token_id).encode()
                )
        return b"".join(parts).decode("utf-8", errors="replace")

    def token_text(self, token_id: int) -> str:
        """The token's displayable text; special tokens and images by name."""
        # An image's name is that of the official prompt format.
        return f"<|image_{-token_id}|>" if token_id < 0 else self.tokenizer.token_text(token_id)

    def _prepare(self, num_crops: int, image: MessageImage, seen: Seen) -> PromptImage:
        """Find, or decode and scale, an image; adds its path in the request to an ImageError."""
        process, num_crops = self.image_processor, image.num_crops or num_crops
        try:
            opened = image.open()
            if not isinstance(opened, ImageFile):
                return process(opened, num_crops)
            digest = process.file_digest(opened.data, num_crops)
            if (found := seen(digest)) is not None:
                opened.count(found.num_pixels)
                return found
            return process(opened.decode(opened.data), num_crops, digest)
        except ImageError as error:
            raise ImageError(error.message, image.loc, error.value) from error

    def _refuse_hopeless_length(self, prompt: Prompt, max_tokens: int) -> None:
        """Refuse megabytes of text without spending seconds on tokenization."""
        characters = sum(
            len(part.text) for piece in prompt.pieces for part in piece if isinstance(part, Text)
        )
        check_length(characters // self.tokenizer.longest_piece, max_tokens, at_least=True)


def check_length(length: int, max_tokens: int, at_least: bool = False) -> None:
    """Raise ContextLengthError if ``length`` exceeds ``max_tokens``.

    Args:
        length: of the prompt, or with ``at_least`` a lower bound of it.
        max_tokens: the limit.
        at_least: the prompt may be longer than ``length``.
    """
    if length > max_tokens:
        raise ContextLengthError(
            f"the prompt has {'at least ' if at_least else ''}{length} tokens, the limit is {max_tokens} "
            # LiteLLM maps this clause to its ContextWindowExceededError.
            f"(this model's maximum context length is {max_tokens + 1} tokens, one is for the answer); "
            "shorten the messages or send a smaller image",
            ("messages",),
            length,
        )

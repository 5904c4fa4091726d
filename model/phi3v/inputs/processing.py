"""Converts messages to prompt inputs: token ids with image positions, and the images' crops.

Pure computation on the CPU; the engine runs it in worker threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model.errors import ContextLengthError, ImageError
from model.phi3v.inputs.chat import Message, MessageImage, Piece, Prompt, Text, render
from model.phi3v.inputs.image_processing import SMALLEST_IMAGE, ImageInputs, ImageProcessor
from model.phi3v.inputs.tokenizer import Phi3VTokenizer

SEVERAL_CROPS = 4  # tiles of an image that is not alone, as the model's authors advise


@dataclass(frozen=True, eq=False)
class PromptInputs:
    """The input of a sequence.

    Attributes:
        token_ids: the prompt; ``-k`` at the positions of the k-th image, which no vocabulary entry can be
            mistaken for.
        images: the images at those positions.
    """

    token_ids: list[int]
    images: tuple[ImageInputs, ...] = ()


@dataclass(frozen=True, eq=False)
class Draft:
    """A prompt whose images are not decoded yet.

    Attributes:
        pieces: token ids before, between and after the images.
        images: the images between the pieces.
        crops: decodes an image and cuts it into crops.
        max_tokens: maximum length of a prompt.
    """

    pieces: list[list[int]]
    images: tuple[MessageImage, ...]
    crops: Callable[[MessageImage], ImageInputs]
    max_tokens: int

    def finish(self) -> PromptInputs:
        """Complete the prompt, one image after the other; slow if there are any.

        Raises:
            ImageError: an image cannot be decoded or cut.
            ContextLengthError: the prompt is longer than ``max_tokens``.
        """
        left = len(self.images)  # images to decode
        length = sum(map(len, self.pieces)) + left * SMALLEST_IMAGE
        check_length(length, self.max_tokens, at_least=left > 0)
        token_ids = list(self.pieces[0])
        images: list[ImageInputs] = []
        for number, (image, piece) in enumerate(zip(self.images, self.pieces[1:], strict=True), 1):
            inputs = self.crops(image)
            left -= 1
            length += inputs.num_tokens - SMALLEST_IMAGE
            check_length(length, self.max_tokens, at_least=left > 0)
            images.append(inputs)
            token_ids += [-number] * inputs.num_tokens
            token_ids += piece
        return PromptInputs(token_ids, tuple(images))


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
    def from_checkpoint(cls, directory: Path, images_per_prompt: int = 1) -> Processor:
        """Read the tokenizer and processor files of a checkpoint; raises CheckpointError."""
        image_processor = ImageProcessor.from_checkpoint(directory)
        return cls(Phi3VTokenizer(directory), image_processor, images_per_prompt)

    def __call__(self, messages: Sequence[Message], max_tokens: int) -> PromptInputs:
        """Tokenize a conversation and cut its last images into crops.

        Args:
            messages: the conversation.
            max_tokens: maximum length of the prompt.

        Raises:
            RequestError: the messages violate the chat template's rules, or an image is invalid.
            ContextLengthError: the prompt is longer than ``max_tokens``.
        """
        return self.draft(messages, max_tokens).finish()

    def draft(self, messages: Sequence[Message], max_tokens: int) -> Draft:
        """Like a call, but leaves the images to ``Draft.finish``."""
        prompt = render(messages, self.images_per_prompt)
        self._refuse_hopeless_length(prompt, max_tokens)
        pieces = [self.tokenizer.encode(piece) for piece in prompt.pieces]
        num_crops = self.image_processor.num_crops
        if len(prompt.images) > 1:
            num_crops = min(num_crops, SEVERAL_CROPS)
        return Draft(pieces, prompt.images, partial(self._crops, num_crops), max_tokens)

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

    def token_text(self, token_id: int) -> str:
        """The token's displayable text; special tokens and images by name."""
        # An image's name is that of the official prompt format.
        return f"<|image_{-token_id}|>" if token_id < 0 else self.tokenizer.token_text(token_id)

    def _crops(self, num_crops: int, image: MessageImage) -> ImageInputs:
        """Decode and cut an image; adds its path in the request to an ImageError."""
        try:
            return self.image_processor(image.open(), image.low_detail, num_crops)
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

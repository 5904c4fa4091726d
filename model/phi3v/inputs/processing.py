"""Converts messages to prompt inputs: token ids with image positions, and the image's crops.

Pure computation on the CPU; the engine runs it in worker threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model.errors import ContextLengthError, ImageError
from model.phi3v.inputs.chat import Message, MessageImage, Piece, Prompt, Text, render
from model.phi3v.inputs.image_processing import ImageInputs, ImageProcessor
from model.phi3v.inputs.tokenizer import Phi3VTokenizer

IMAGE_TAG = "<|image_1|>"  # an image in the official prompt format
IMAGE_TOKEN_ID = -1  # marks an image position; no vocabulary entry can be mistaken for it


@dataclass(frozen=True, eq=False)
class PromptInputs:
    """The input of a sequence.

    Attributes:
        token_ids: the prompt; ``IMAGE_TOKEN_ID`` at the positions of the image.
        image: the image at those positions, if any.
    """

    token_ids: list[int]
    image: ImageInputs | None = None


@dataclass(frozen=True, eq=False)
class Draft:
    """A prompt whose image, if any, is not decoded yet.

    Attributes:
        pieces: token ids before and after the image; one piece without an image.
        crops: decodes the image and cuts it into crops.
        max_tokens: maximum length of a prompt.
    """

    pieces: list[list[int]]
    crops: Callable[[], ImageInputs] | None
    max_tokens: int

    @property
    def has_image(self) -> bool:
        """Whether there is an image, which makes ``finish`` slow."""
        return self.crops is not None

    def finish(self) -> PromptInputs:
        """Complete the prompt; raises ImageError or ContextLengthError."""
        if self.crops is None:
            return PromptInputs(self.pieces[0])
        image = self.crops()
        before, after = self.pieces
        token_ids = [*before, *[IMAGE_TOKEN_ID] * image.num_tokens, *after]
        check_length(len(token_ids), self.max_tokens)
        return PromptInputs(token_ids, image)


class Processor:
    """Chat template, tokenizer and image processor of one checkpoint."""

    def __init__(self, tokenizer: Phi3VTokenizer, image_processor: ImageProcessor) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor

    @classmethod
    def from_checkpoint(cls, directory: Path, tokenizer: Path | None = None) -> Processor:
        """Read the tokenizer and processor files of a checkpoint; raises CheckpointError.

        Args:
            directory: the checkpoint.
            tokenizer: where the tokenizer's files are, if not there.
        """
        return cls(
            Phi3VTokenizer(tokenizer or directory), ImageProcessor.from_checkpoint(directory)
        )

    def __call__(self, messages: Sequence[Message], max_tokens: int) -> PromptInputs:
        """Tokenize a conversation and cut its last image into crops.

        Args:
            messages: the conversation.
            max_tokens: maximum length of the prompt.

        Raises:
            RequestError: the messages violate the chat template's rules, or an image is invalid.
            ContextLengthError: the prompt is longer than ``max_tokens``.
        """
        return self.draft(messages, max_tokens).finish()

    def draft(self, messages: Sequence[Message], max_tokens: int) -> Draft:
        """Like a call, but leaves the image to ``Draft.finish``."""
        prompt = render(messages)
        self._refuse_hopeless_length(prompt, max_tokens)
        pieces = [self.tokenizer.encode(piece) for piece in prompt.pieces]
        if prompt.image is None:
            check_length(len(pieces[0]), max_tokens)
        crops = None if prompt.image is None else partial(self._crops, prompt.image)
        return Draft(pieces, crops, max_tokens)

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
        return IMAGE_TAG if token_id == IMAGE_TOKEN_ID else self.tokenizer.token_text(token_id)

    def _crops(self, image: MessageImage) -> ImageInputs:
        """Decode and cut an image; adds its path in the request to an ImageError."""
        try:
            return self.image_processor(image.open(), image.low_detail)
        except ImageError as error:
            raise ImageError(error.message, image.loc, error.value) from error

    def _refuse_hopeless_length(self, prompt: Prompt, max_tokens: int) -> None:
        """Refuse megabytes of text without spending seconds on tokenization."""
        characters = sum(
            len(part.text) for piece in prompt.pieces for part in piece if isinstance(part, Text)
        )
        check_length(characters // self.tokenizer.longest_piece, max_tokens, at_least="at least ")


def check_length(length: int, max_tokens: int, at_least: str = "") -> None:
    """Raise ContextLengthError if ``length`` exceeds ``max_tokens``."""
    if length > max_tokens:
        raise ContextLengthError(
            f"the prompt has {at_least}{length} tokens, the limit is {max_tokens} "
            # LiteLLM maps this clause to its ContextWindowExceededError.
            f"(this model's maximum context length is {max_tokens + 1} tokens, one is for the answer); "
            "shorten the messages or send a smaller image",
            ("messages",),
            length,
        )

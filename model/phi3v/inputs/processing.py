"""Converts messages to prompt inputs: token ids with image positions, and the image's crops.

Pure computation on the CPU; the engine runs it in worker threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from model.errors import ContextLengthError, ImageError, RequestError
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
        keep: number of tokens at the end of a longer prompt to keep; None keeps all.
    """

    pieces: list[list[int]]
    crops: Callable[[], ImageInputs] | None
    max_tokens: int
    keep: int | None = None

    @property
    def has_image(self) -> bool:
        """Whether there is an image, which makes ``finish`` slow."""
        return self.crops is not None

    def finish(self) -> PromptInputs:
        """Complete the prompt.

        Raises:
            ImageError: the image is unreadable.
            ContextLengthError: the prompt is too long.
            RequestError: it would be cut within the image.
        """
        if self.crops is None:
            return PromptInputs(self.pieces[0])
        image = self.crops()
        before, after = self.pieces
        token_ids = [*before, *[IMAGE_TOKEN_ID] * image.num_tokens, *after]
        cut = 0 if self.keep is None else max(0, len(token_ids) - self.keep)
        left = token_ids[cut:]
        check_length(len(left), self.max_tokens)
        if cut <= len(before):
            return PromptInputs(left, image)
        if len(left) <= len(after):
            return PromptInputs(left)
        raise RequestError(
            f"truncate_prompt_tokens would cut the image: the prompt's last {self.keep} tokens contain "
            f"a part of its {image.num_tokens}; keep more, or make the image smaller with num_crops",
            ("truncate_prompt_tokens",),
            self.keep,
        )


class Processor:
    """Chat template, tokenizer and image processor of one checkpoint."""

    def __init__(self, tokenizer: Phi3VTokenizer, image_processor: ImageProcessor) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor

    @classmethod
    def from_checkpoint(cls, directory: Path) -> Processor:
        """Read the tokenizer and processor files of a checkpoint; raises CheckpointError."""
        return cls(Phi3VTokenizer(directory), ImageProcessor.from_checkpoint(directory))

    def __call__(
        self, messages: Sequence[Message], max_tokens: int, keep: int | None = None
    ) -> PromptInputs:
        """Tokenize a conversation and cut its last image into crops.

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
        """Like a call, but leaves the image to ``Draft.finish``."""
        prompt = render(messages)
        self._refuse_hopeless_length(prompt, max_tokens)
        pieces = [self.tokenizer.encode(piece) for piece in prompt.pieces]
        if prompt.image is None:
            if keep is not None:
                pieces = [pieces[0][-keep:]]
            check_length(len(pieces[0]), max_tokens)
        crops = None if prompt.image is None else partial(self._crops, prompt.image)
        return Draft(pieces, crops, max_tokens, keep)

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
            if token_id != IMAGE_TOKEN_ID or before != IMAGE_TOKEN_ID:
                parts.append(
                    self.tokenizer.token_bytes(token_id) or self.token_text(token_id).encode()
                )
        return b"".join(parts).decode("utf-8", errors="replace")

    def token_text(self, token_id: int) -> str:
        """The token's displayable text; special tokens and images by name."""
        return IMAGE_TAG if token_id == IMAGE_TOKEN_ID else self.tokenizer.token_text(token_id)

    def _crops(self, image: MessageImage) -> ImageInputs:
        """Decode and cut an image; adds its path in the request to an ImageError."""
        try:
            return self.image_processor(image.open(), image.num_crops)
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

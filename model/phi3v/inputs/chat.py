"""Renders a conversation as a prompt, by Phi-3-vision's rules.

System and developer messages are folded into the next user turn, and consecutive messages of one role are
merged. By default a message may have one image, only the last image is kept, and it comes first in its
turn. With several images per prompt, the last ones are kept, where their messages put them. User input
stays ``Text``, so it can never become a control token. Handles no token ids; does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image

from model.errors import ModalityError, RequestError, TooManyImagesError

Role = Literal["system", "developer", "user", "assistant"]

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"


@dataclass(frozen=True)
class ImageFile:
    """An image file, decoded only if the image was not seen before.

    Attributes:
        data: the file.
        decode: decodes it; raises ImageError. Called on a worker thread.
        count: called instead of ``decode`` for an image seen before, with its number of pixels; raises
            ImageError if the prompt's images are too large together.
    """

    data: bytes
    decode: Callable[[bytes], Image.Image]
    count: Callable[[int], None]


@dataclass(frozen=True)
class MessageImage:
    """An image in a message, opened lazily, because only a conversation's last images are used.

    Attributes:
        open: returns the image or its file; raises ImageError. Called on a worker thread.
        num_crops: maximum number of crops beside the global view, for fewer tokens; None is the
            checkpoint's.
        loc: path of its field in the request, for errors.
        offset: characters of the message's text before it, with the newline after them, which is there
            unless the text ends; used with several images per prompt.
    """

    open: Callable[[], Image.Image | ImageFile]
    num_crops: int | None = None
    loc: tuple[str | int, ...] = ()
    offset: int = 0


Part = str | MessageImage


@dataclass(frozen=True)
class Message:
    """One message of a conversation, as the client sent it.

    Attributes:
        role: the author's role.
        text: its text parts, joined by newlines.
        images: its images, in order (on user messages only).
    """

    role: Role
    text: str
    images: tuple[MessageImage, ...] = ()

    def prefixed(self, prefix: str) -> Message:
        """The message with text put in front of its own."""
        moved = (replace(image, offset=image.offset + len(prefix)) for image in self.images)
        return replace(self, text=prefix + self.text, images=tuple(moved))


@dataclass(frozen=True)
class Turn:
    """One turn of the prompt, after folding.

    Attributes:
        role: whose turn it is.
        parts: texts and images in order, each on lines of its own.
    """

    role: Literal["user", "assistant"]
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its texts, joined by newlines."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[MessageImage, ...]:
        """Its images, in order."""
        return tuple(part for part in self.parts if isinstance(part, MessageImage))


@dataclass(frozen=True)
class Control:
    """A control token, by name."""

    name: str


@dataclass(frozen=True)
class Text:
    """Plain text, never parsed for control tokens."""

    text: str


Piece = list[Control | Text]


@dataclass(frozen=True)
class Prompt:
    """A rendered conversation.

    Attributes:
        pieces: the text between images, one piece more than images; each is tokenized separately.
        images: the images between the pieces.
    """

    pieces: list[Piece]
    images: tuple[MessageImage, ...] = ()


def render(messages: Sequence[Message], images_per_prompt: int = 1) -> Prompt:
    """Fold messages into a prompt that ends where the assistant's turn starts.

    Args:
        messages: the conversation.
        images_per_prompt: maximum number of images; of more, the last ones are kept.

    Raises:
        RequestError: no messages.
        ModalityError: an image outside a user message.
        TooManyImagesError: more than ``images_per_prompt`` images in one message.
    """
    pieces: list[Piece] = [[]]
    turns = fold(messages, images_per_prompt)
    for turn in turns:
        pieces[-1].append(Control(f"<|{turn.role}|>"))
        text = ""
        for part in turn.parts:
            if isinstance(part, str):
                text += f"\n{part}"
            else:
                pieces[-1].append(Text(f"{text}\n"))
                pieces.append([])
                text = ""
        pieces[-1] += [Text(text or "\n"), Control(END), Text("\n")]
    pieces[-1] += [Control(ASSISTANT), Text("\n")]
    return Prompt(pieces, tuple(image for turn in turns for image in turn.images))


def fold(messages: Sequence[Message], images_per_prompt: int = 1) -> list[Turn]:
    """Fold messages into turns with alternating roles and at most ``images_per_prompt`` images in total.

    System texts are prepended to the next user message, or become a user turn if there is none.
    """
    if not messages:
        raise RequestError("messages is empty; send at least one message", ("messages",))
    turns: list[Turn] = []
    waiting: list[str] = []
    for position, message in enumerate(messages):
        _check_images(message, position, images_per_prompt)
        if message.role in ("system", "developer"):
            waiting.append(message.text)
        elif message.role == "assistant":
            _append(turns, Turn("assistant", (message.text,)))
        else:
            _append(turns, Turn("user", (*waiting, *_parts_of(message, images_per_prompt))))
            waiting = []
    if waiting:
        _append(turns, Turn("user", tuple(waiting)))
    turns = _keep_last_images(turns, images_per_prompt)
    return turns if images_per_prompt > 1 else list(map(_put_image_first, turns))


def _parts_of(message: Message, images_per_prompt: int) -> tuple[Part, ...]:
    """A user message's texts and images in order."""
    if images_per_prompt == 1 or not message.images:
        return (*message.images, message.text)
    parts: list[Part] = []
    start = 0
    for image in message.images:
        if image.offset > start:
            parts.append(message.text[start : image.offset - 1])
        parts.append(image)
        start = image.offset
    parts.append(message.text[start:])
    return tuple(part for part in parts if part != "")


def _check_images(message: Message, position: int, images_per_prompt: int) -> None:
    loc = ("messages", position, "content")
    count = len(message.images)
    if count > images_per_prompt == 1:
        raise TooManyImagesError(
            f"message {position} has {count} images; Phi-3-vision takes one image per "
            "turn, and only the last one of a conversation counts: send one",
            loc,
        )
    if count > images_per_prompt:
        raise TooManyImagesError(
            f"message {position} has {count} images; this server takes at most {images_per_prompt} per "
            "prompt (--images-per-prompt), the last ones of a conversation: send fewer",
            loc,
        )
    if message.images and message.role != "user":
        raise ModalityError(
            f"message {position} has the role {message.role!r} and an image; send images in user "
            "messages only",
            loc,
        )


def _append(turns: list[Turn], turn: Turn) -> None:
    """Append a turn, or merge it into the last one if the role is the same."""
    if turns and turns[-1].role == turn.role:
        turn = Turn(turn.role, (*turns.pop().parts, *turn.parts))
    turns.append(turn)


def _keep_last_images(turns: list[Turn], most: int) -> list[Turn]:
    too_many = sum(len(turn.images) for turn in turns) - most
    kept: list[Turn] = []
    for turn in turns:
        parts: list[Part] = []
        for part in turn.parts:
            if isinstance(part, MessageImage) and too_many > 0:
                too_many -= 1
            else:
                parts.append(part)
        kept.append(Turn(turn.role, tuple(parts)))
    return kept


def _put_image_first(turn: Turn) -> Turn:
    return Turn(turn.role, (*turn.images, turn.text))

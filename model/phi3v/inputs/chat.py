"""Renders a conversation as a prompt, by Phi-3-vision's rules.

System and developer messages are folded into the next user turn, consecutive messages of one role are
merged, a message may have one image, and only the last image is kept. User input stays ``Text``, so it
can never become a control token. Handles no token ids; does not import torch.
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
class MessageImage:
    """An image in a message, decoded lazily, because only a conversation's last image is used.

    Attributes:
        open: decodes the image; raises ImageError. Called on a worker thread.
        num_crops: maximum number of crops beside the global view, for fewer tokens; None is the
            checkpoint's.
        loc: path of its field in the request, for errors.
    """

    open: Callable[[], Image.Image]
    num_crops: int | None = None
    loc: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Message:
    """One message of a conversation, as the client sent it.

    Attributes:
        role: the author's role.
        text: its text parts, joined by newlines.
        images: its images, in order (at most one is allowed, on user messages only).
    """

    role: Role
    text: str
    images: tuple[MessageImage, ...] = ()


@dataclass(frozen=True)
class Turn:
    """One turn of the prompt, after folding."""

    role: Literal["user", "assistant"]
    text: str
    image: MessageImage | None = None


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
        pieces: one piece, or two around the image; each is tokenized separately.
        image: the image between the pieces, if any.
    """

    pieces: list[Piece]
    image: MessageImage | None = None


def render(messages: Sequence[Message]) -> Prompt:
    """Fold messages into a prompt that ends where the assistant's turn starts.

    Raises:
        RequestError: no messages.
        ModalityError: an image outside a user message.
        TooManyImagesError: two images in one message.
    """
    pieces: list[Piece] = [[]]
    kept = None
    for turn in fold(messages):
        pieces[-1].append(Control(f"<|{turn.role}|>"))
        text = f"\n{turn.text}"
        if turn.image is not None:
            pieces[-1].append(Text("\n"))
            pieces.append([])
            kept = turn.image
        pieces[-1] += [Text(text), Control(END), Text("\n")]
    pieces[-1] += [Control(ASSISTANT), Text("\n")]
    return Prompt(pieces, kept)


def fold(messages: Sequence[Message]) -> list[Turn]:
    """Fold messages into turns with alternating roles and at most one image in total.

    System texts are prepended to the next user message, or become a user turn if there is none.
    """
    if not messages:
        raise RequestError("messages is empty; send at least one message", ("messages",))
    turns: list[Turn] = []
    waiting: list[str] = []
    for position, message in enumerate(messages):
        _check_images(message, position)
        if message.role in ("system", "developer"):
            waiting.append(message.text)
        elif message.role == "assistant":
            _append(turns, Turn("assistant", message.text))
        else:
            text = "\n".join([*waiting, message.text])
            waiting = []
            _append(turns, Turn("user", text, message.images[0] if message.images else None))
    if waiting:
        _append(turns, Turn("user", "\n".join(waiting)))
    return _keep_last_image(turns)


def _check_images(message: Message, position: int) -> None:
    loc = ("messages", position, "content")
    if len(message.images) > 1:
        raise TooManyImagesError(
            f"message {position} has {len(message.images)} images; Phi-3-vision takes one image per "
            "turn, and only the last one of a conversation counts: send one",
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
        last = turns.pop()
        turn = Turn(turn.role, f"{last.text}\n{turn.text}", turn.image or last.image)
    turns.append(turn)


def _keep_last_image(turns: list[Turn]) -> list[Turn]:
    with_image = [i for i, turn in enumerate(turns) if turn.image is not None]
    return [
        replace(turn, image=None) if i in with_image[:-1] else turn for i, turn in enumerate(turns)
    ]

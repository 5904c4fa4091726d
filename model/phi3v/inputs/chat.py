"""From the messages of a conversation to the pieces of a prompt, by Phi-3-vision's rules.

System and developer texts are folded into the next user turn, neighbours of one role are merged,
one image per message is enforced and only the last image is kept. What a user typed stays ``Text``
and so can never become a control token. Knows nothing of token ids; imports no torch.
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
    """An image in a message, not decoded yet: of a conversation's images only one is looked at.

    Attributes:
        open: decodes the picture; raises ImageError. Called on a worker thread.
        low_detail: show the model the whole in one crop, for fewer tokens.
        loc: where it stands in the request, for errors.
    """

    open: Callable[[], Image.Image]
    low_detail: bool = False
    loc: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Message:
    """One message of a conversation, as a client sent it.

    Attributes:
        role: who speaks.
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
    """A control token, by its name in the vocabulary."""

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
        pieces: one piece, or the two around the image. Each is tokenized on its own.
        image: the image between the two pieces.
    """

    pieces: list[Piece]
    image: MessageImage | None = None


def render(messages: Sequence[Message]) -> Prompt:
    """Fold messages and lay out the prompt, ending where the assistant begins to speak.

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
    """Turns of alternating roles with at most one image in all.

    System texts wait for the next user message and stand before its text; with none left they
    become a user turn of their own.
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
    """Append a turn, or merge it into the last one when the role is the same."""
    if turns and turns[-1].role == turn.role:
        last = turns.pop()
        turn = Turn(turn.role, f"{last.text}\n{turn.text}", turn.image or last.image)
    turns.append(turn)


def _keep_last_image(turns: list[Turn]) -> list[Turn]:
    with_image = [i for i, turn in enumerate(turns) if turn.image is not None]
    return [
        replace(turn, image=None) if i in with_image[:-1] else turn for i, turn in enumerate(turns)
    ]

"""Conversations to send, with their right answers."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Case:
    """A conversation to send, with the right answer.

    Attributes:
        kind: row of the table.
        messages: in the API's format.
        expected: the right answer.
        picture: the picture asked about, saved if the answer is wrong.
        keywords: if set, accept any answer that contains these words, instead of ``expected``.
    """

    kind: str
    messages: list[dict[str, Any]]
    expected: str
    picture: Image.Image | None = None
    keywords: tuple[str, ...] = field(default=())

    def is_right(self, answer: str) -> bool:
        """Whether the answer is right."""
        if self.keywords:
            words = re.findall(r"[a-z0-9]+", answer.lower())
            return all(word in words for word in self.keywords)
        if self.kind == "describe":  # in any order
            return _things(answer) == _things(self.expected)
        return answer.strip() == self.expected


def _things(text: str) -> list[str]:
    return sorted(re.split(r", | and ", text.removeprefix("The picture shows ").rstrip(".")))


def data_url(rng: np.random.Generator, picture: Image.Image) -> str:
    """The picture as a PNG, or as a JPEG of quality 60 to 95."""
    file, kind = io.BytesIO(), "PNG" if rng.random() < 0.5 else "JPEG"
    picture.save(file, kind, **({} if kind == "PNG" else {"quality": int(rng.integers(60, 96))}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def user(text: str, url: str | None = None) -> dict[str, Any]:
    """A user message, with or without a picture."""
    if url is None:
        return {"role": "user", "content": text}
    image = {"type": "image_url", "image_url": {"url": url}}
    return {"role": "user", "content": [{"type": "text", "text": text}, image]}

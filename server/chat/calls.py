"""Reads forced calls from the text that the model generates, piece by piece."""

from __future__ import annotations

import json
import re
import uuid

from server.chat.tools import ForcedCall

# What opens and closes objects and strings; all else is skipped.
MARKS = re.compile(r'["\\{}]')


class CallReader:
    """Splits a forced call, ``{"name": ..., "arguments": {...}}``, into name and arguments.

    Args:
        call: what the answer is forced to be.

    Attributes:
        id: of the call, random.
        name: of the function; None until it is known, at once if there is only one.
        is_complete: whether the arguments have ended.
    """

    def __init__(self, call: ForcedCall) -> None:
        self.id = f"call_{uuid.uuid4().hex[:24]}"
        self.name = call.names[0] if len(call.names) == 1 else None
        self.is_complete = False
        self._heads = {_head(name): name for name in call.names}
        self._head = ""
        self._is_read = False  # whether the head is
        self._depth = 0
        self._in_string = False
        self._escaped = -1  # position, in the next text, of the character after a backslash

    def add(self, text: str) -> str:
        """Add text of the answer; returns the part of it that belongs to the arguments."""
        if not self._is_read:
            self._head += text
            text = self._end_head()
        return self._arguments(text)

    def _end_head(self) -> str:
        """The text after the head, once that is complete."""
        # No head starts another: after the name comes a quotation mark, which no name contains.
        for head, name in self._heads.items():
            if self._head.startswith(head):
                self.name, self._is_read = name, True
                return self._head[len(head) :]
        return ""

    def _arguments(self, text: str) -> str:
        """The beginning of ``text`` up to the end of the arguments' object."""
        if self.is_complete:
            return ""
        for mark in MARKS.finditer(text):
            at, character = mark.start(), mark[0]
            if at == self._escaped:
                continue
            if character == "\\":
                self._escaped = at + 1
            elif character == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if character == "{" else -1
                if self._depth == 0:
                    self.is_complete = True
                    return text[: at + 1]
        self._escaped -= len(text)
        return text


def _head(name: str) -> str:
    return f'{{"name": {json.dumps(name)}, "arguments": '

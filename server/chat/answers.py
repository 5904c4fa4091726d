"""Turns generated text into messages, whole or in pieces: text as it is, forced calls as tool calls."""

from __future__ import annotations

from typing import Protocol

import model
from server.chat.calls import CallReader
from server.chat.tools import ForcedCall
from server.schemas.responses import (
    AnswerMessage,
    Delta,
    FinishReason,
    FunctionCall,
    FunctionCallDelta,
    ToolCall,
    ToolCallDelta,
)


class Answer(Protocol):
    """One answer of a completion."""

    def opening(self) -> Delta:
        """What the first chunk has."""

    def add(self, text: str) -> list[Delta]:
        """Add generated text; returns what it adds to the message, for a chunk each."""

    def nothing(self) -> Delta:
        """What a chunk has that adds nothing."""

    def message(self) -> AnswerMessage:
        """The whole message."""

    def finish_reason(self, reason: model.FinishReason) -> FinishReason:
        """The finish reason on the wire; ``reason`` is the engine's."""


class TextAnswer:
    """An answer that is text. Azure's clients expect a string in each chunk."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def opening(self) -> Delta:
        """See ``Answer``."""
        return Delta(role="assistant")

    def add(self, text: str) -> list[Delta]:
        """See ``Answer``."""
        self._texts.append(text)
        return [Delta(content=text)] if text else []

    def nothing(self) -> Delta:
        """See ``Answer``."""
        return Delta()

    def message(self) -> AnswerMessage:
        """See ``Answer``."""
        return AnswerMessage(content="".join(self._texts))

    def finish_reason(self, reason: model.FinishReason) -> FinishReason:
        """See ``Answer``."""
        return reason


class CallAnswer:
    """An answer that is a call."""

    def __init__(self, call: ForcedCall) -> None:
        self._finish_reason = call.finish_reason
        self._reader = CallReader(call)
        self._arguments: list[str] = []
        self._is_announced = False

    def opening(self) -> Delta:
        """See ``Answer``."""
        return Delta(role="assistant", content=None)

    def add(self, text: str) -> list[Delta]:
        """See ``Answer``. The first piece has the name and no arguments."""
        reader = self._reader
        arguments = reader.add(text)
        self._arguments.append(arguments)
        calls = []
        if reader.name is not None and not self._is_announced:
            self._is_announced = True
            named = FunctionCallDelta(name=reader.name)
            calls.append(ToolCallDelta(id=reader.id, type="function", function=named))
        if arguments:
            calls.append(ToolCallDelta(function=FunctionCallDelta(arguments=arguments)))
        return [Delta(content=None, tool_calls=[call]) for call in calls]

    def nothing(self) -> Delta:
        """See ``Answer``."""
        return Delta(content=None)

    def message(self) -> AnswerMessage:
        """See ``Answer``. Without a call if it was cut short before its name."""
        reader = self._reader
        if reader.name is None:
            return AnswerMessage(content=None)
        function = FunctionCall(name=reader.name, arguments="".join(self._arguments))
        return AnswerMessage(content=None, tool_calls=[ToolCall(id=reader.id, function=function)])

    def finish_reason(self, reason: model.FinishReason) -> FinishReason:
        """See ``Answer``."""
        return self._finish_reason if self._reader.is_complete else reason

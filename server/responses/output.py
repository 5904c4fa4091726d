"""Builds the output items of a response from the deltas of a chat completion, and the events on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Literal, NamedTuple

from server.responses.ids import item_id
from server.responses.wire import Pieces
from server.schemas.responses_events import (
    ArgumentsDeltaEvent,
    ArgumentsDoneEvent,
    Event,
    ItemEvent,
    PartEvent,
    TextDeltaEvent,
    TextDoneEvent,
)
from server.schemas.responses_object import (
    ItemStatus,
    OutputCall,
    OutputItem,
    OutputMessage,
    TextContent,
)


class CallDelta(NamedTuple):
    """What a delta adds to a function call; the first of each call has its id and name."""

    position: int
    arguments: str
    call_id: str = ""
    name: str = ""


class AnswerDelta(NamedTuple):
    """What a delta adds to the answer.

    Attributes:
        text: text of the message.
        logprobs: JSON of the text's log probabilities, comma-separated.
        calls: parts of function calls.
    """

    text: str = ""
    logprobs: bytes = b""
    calls: Sequence[CallDelta] = ()


class Said(NamedTuple):
    """An event and the log probabilities that belong into it; see ``server.responses.wire``."""

    event: Event
    logprobs: Sequence[Pieces] = ()


@dataclass
class _Message:
    id: str
    position: int
    texts: list[str] = field(default_factory=list)
    logprobs: Pieces = field(default_factory=list)

    def item(self, status: ItemStatus) -> OutputMessage:
        content = [] if status == "in_progress" else [TextContent(text="".join(self.texts))]
        return OutputMessage(id=self.id, status=status, content=content)


@dataclass
class _Call:
    id: str
    position: int
    call_id: str
    name: str
    arguments: list[str] = field(default_factory=list)

    def item(self, status: ItemStatus) -> OutputCall:
        return OutputCall(
            id=self.id,
            status=status,
            call_id=self.call_id,
            name=self.name,
            arguments="".join(self.arguments),
        )


class Output:
    """The output items of a response.

    Args:
        response: id of the response.

    Attributes:
        numbers: the sequence numbers of the events.
    """

    def __init__(self, response: str) -> None:
        self.numbers = count()
        self._response = response
        self._items: list[_Message | _Call] = []
        self._calls: dict[int, _Call] = {}  # by the position in the chat completion

    def add(self, delta: AnswerDelta) -> Iterator[Said]:
        """Add a delta; yields its events and must be read to the end."""
        if delta.text or delta.logprobs:
            yield from self._add_text(delta)
        for call in delta.calls:
            yield from self._add_call(call)

    def _add_text(self, delta: AnswerDelta) -> Iterator[Said]:
        message = self._items[-1] if self._items else None
        if not isinstance(message, _Message):
            yield from self._finish_last("completed")
            message = _Message(self._id("msg"), len(self._items))
            yield from self._begin(message)
        own: Pieces = []
        if delta.logprobs:
            own = [delta.logprobs]
            message.logprobs.append((b"," if message.logprobs else b"") + delta.logprobs)
        message.texts.append(delta.text)
        event = TextDeltaEvent(
            sequence_number=next(self.numbers),
            item_id=message.id,
            output_index=message.position,
            delta=delta.text,
        )
        yield Said(event, [own])

    def _add_call(self, delta: CallDelta) -> Iterator[Said]:
        call = self._calls.get(delta.position)
        if call is None:
            yield from self._finish_last("completed")
            call = _Call(self._id("fc"), len(self._items), delta.call_id, delta.name)
            self._calls[delta.position] = call
            yield from self._begin(call)
        if delta.arguments:
            call.arguments.append(delta.arguments)
            event = ArgumentsDeltaEvent(
                sequence_number=next(self.numbers),
                item_id=call.id,
                output_index=call.position,
                delta=delta.arguments,
            )
            yield Said(event)

    def finish(self, status: Literal["completed", "incomplete"]) -> Iterator[Said]:
        """End the last item, whose status is that of the response; an empty answer is an empty message."""
        if not self._items:
            yield from self._begin(_Message(self._id("msg"), 0))
        yield from self._finish_last(status)

    def items(self, last: ItemStatus) -> list[OutputItem]:
        """The items; ``last`` is the status of the last one, the others are completed."""
        final = len(self._items) - 1
        return [item.item(last if item.position == final else "completed") for item in self._items]

    @property
    def logprobs(self) -> list[Pieces]:
        """The log probabilities of each message."""
        return [item.logprobs for item in self._items if isinstance(item, _Message)]

    def _id(self, kind: str) -> str:
        return item_id(self._response, kind, len(self._items))

    def _begin(self, item: _Message | _Call) -> Iterator[Said]:
        self._items.append(item)
        event = ItemEvent(
            type="response.output_item.added",
            sequence_number=next(self.numbers),
            output_index=item.position,
            item=item.item("in_progress"),
        )
        yield Said(event)
        if isinstance(item, _Message):
            yield Said(self._part_event(item, "response.content_part.added", TextContent()))

    def _finish_last(self, status: Literal["completed", "incomplete"]) -> Iterator[Said]:
        if not self._items:
            return
        item = self._items[-1]
        logprobs: list[Pieces] = []
        if isinstance(item, _Call):
            yield Said(
                ArgumentsDoneEvent(
                    sequence_number=next(self.numbers),
                    item_id=item.id,
                    output_index=item.position,
                    name=item.name,
                    arguments="".join(item.arguments),
                )
            )
        else:
            logprobs = [item.logprobs]
            whole = TextContent(text="".join(item.texts))
            event = TextDoneEvent(
                sequence_number=next(self.numbers),
                item_id=item.id,
                output_index=item.position,
                text=whole.text,
            )
            yield Said(event, logprobs)
            yield Said(self._part_event(item, "response.content_part.done", whole), logprobs)
        done = ItemEvent(
            type="response.output_item.done",
            sequence_number=next(self.numbers),
            output_index=item.position,
            item=item.item(status),
        )
        yield Said(done, logprobs)

    def _part_event(
        self,
        message: _Message,
        kind: Literal["response.content_part.added", "response.content_part.done"],
        part: TextContent,
    ) -> PartEvent:
        return PartEvent(
            type=kind,
            sequence_number=next(self.numbers),
            item_id=message.id,
            output_index=message.position,
            part=part,
        )
